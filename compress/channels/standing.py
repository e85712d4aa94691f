"""A network that stands still while masks are searched in it: weights, modes, batch norms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

NORMS = ("running", "batch")
"""What batch norms divide by in a search: their running statistics, or those of the batch."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let a model neither train nor move its running statistics for the while."""
    modes = {module: module.training for module in model.modules()}
    needs = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval()
    model.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, need in needs.items():
            parameter.requires_grad_(need)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norms use the batch's own statistics, and not remember them, for the while."""
    norms = batch_norms(model)
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, (mode, track) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = mode, track


@contextmanager
def borrowed_statistics(model: nn.Module) -> Iterator[None]:
    """Put the running statistics back as they were afterwards."""
    before = [
        (norm, {k: v.clone() for k, v in norm.named_buffers()}) for norm in batch_norms(model)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for norm, buffers in before:
                for name, value in buffers.items():
                    norm.get_buffer(name).copy_(value)


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms with running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [m for m in model.modules() if isinstance(m, kind) and m.track_running_stats]
