"""Layers with correlated inputs that the tests of the solvers share."""

import torch


def correlated(tokens, width, seed=0, shift=0.0):
    """Inputs [tokens, width], float64, of decaying variance; `shift` moves their means."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=g, dtype=torch.float64)
    mix *= torch.logspace(0, -1.5, width, dtype=torch.float64)[:, None]
    mean = shift * mix.norm(dim=0) * torch.randn(width, generator=g, dtype=torch.float64)
    return torch.randn(tokens, width, generator=g, dtype=torch.float64) @ mix + mean


def gaussian(out, inp, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(out, inp, generator=g, dtype=torch.float64)


def error(weight, pruned, x):
    """||X (W - W')ᵀ||², a number per row."""
    return (x @ (pruned.double() - weight.double()).T).square().sum(0)
