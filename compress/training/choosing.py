"""The optimizer that a run asked for, by name; AdamW is torch's own, fused."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from compress.errors import RequestError

_ROOM = "compress.training.optimizers"


def check_optimizer(name: str) -> None:
    """Refuse an optimizer that this version lacks.

    Raises:
        RequestError: as said.
    """
    if name == "adamw" or _builder() is not None or (name == "spam" and _spam() is not None):
        return
    raise RequestError(
        f"`--optimizer {name}` isn't in this version", "use `--optimizer adamw`, which is"
    )


def make_optimizer(
    name: str, model: nn.Module, lr: float, options: dict[str, Any]
) -> torch.optim.Optimizer:
    """Make an optimizer of a model's parameters.

    Args:
        name: one of settings.OPTIMIZERS that check_optimizer lets pass.
        model: placed on its device.
        lr: peak learning rate.
        options: betas, weight_decay, maybe eps, and what the optimizer alone takes.

    Raises:
        RequestError: an option that the optimizer refuses.
    """
    if name == "adamw":
        return _adamw(model, lr, options)
    build = _builder()
    if build is not None:
        return build(name, model, lr, **options)
    spam: Any = _spam()
    defaults = {"eps": 1e-6, "betas": (0.9, 0.999), "weight_decay": 0.0}
    return spam(list(model.named_parameters()), lr, **{**defaults, **options})


def _adamw(model: nn.Module, lr: float, options: dict[str, Any]) -> torch.optim.Optimizer:
    """Torch's AdamW; biases and norms aren't decayed, as in the stock Trainer."""
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": options["weight_decay"]},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    eps = options.get("eps", 1e-8)
    return torch.optim.AdamW(groups, lr=lr, betas=options["betas"], eps=eps, fused=True)


def _builder() -> Any:
    """What makes every optimizer by name, None where the room has none."""
    try:
        return getattr(importlib.import_module(_ROOM), "build_optimizer", None)
    except ImportError:
        return None


def _spam() -> Any:
    try:
        return importlib.import_module(f"{_ROOM}.spam").SPAM
    except (ImportError, AttributeError):
        return None
