"""The optimizer that a run asked for, by name; AdamW is torch's own, fused."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn


def make_optimizer(
    name: str, model: nn.Module, lr: float, options: dict[str, Any]
) -> torch.optim.Optimizer:
    """Make an optimizer of a model's parameters.

    Args:
        name: one of settings.OPTIMIZERS.
        model: placed on its device.
        lr: peak learning rate.
        options: betas, weight_decay, maybe eps, and what the optimizer alone takes.

    Raises:
        RequestError: an optimizer that this installation lacks, or an option it refuses.
    """
    if name != "adamw":
        # by name, since what is in that room may need packages that are not installed
        room: Any = importlib.import_module("compress.training.optimizers")
        return room.build_optimizer(name, model, lr, **options)
    decay = options.get("weight_decay", 0.0)
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [  # biases and norms aren't decayed, as in the stock Trainer
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    eps = options.get("eps", 1e-8)
    return torch.optim.AdamW(groups, lr=lr, betas=options["betas"], eps=eps, fused=True)
