"""The optimizers that the libraries keep, made for a model's parameters."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import RequestError
from compress.training.optimizers.apollo import APOLLO
from compress.training.optimizers.grouping import Parameters, sort_parameters
from compress.training.optimizers.paired import Paired
from compress.training.optimizers.spam import SPAM
from compress.training.optimizers.stable_spam import StableSPAM

_EXTRA = "pytorch_optimizer"
GALORE = {"update_proj_gap": 200, "scale": 0.25, "projection_type": "std"}


def package(name: str, method: str) -> Any:
    """Import an optional package.

    Raises:
        RequestError: it isn't installed; the hint is the line that installs it.
    """
    if importlib.util.find_spec(name) is None:
        raise RequestError(
            f"--optimizer {method} needs the package `{name}`, which isn't installed",
            "pip install 'compress[optimizers]'" if name == _EXTRA else f"pip install {name}",
        )
    return importlib.import_module(name)


def spam(source: Any, lr: float, *, weight_decay: float = 0.0, **options: Any) -> Any:
    """SPAM, its density that of the hidden matrices alone."""
    density = {"density": options.pop("density", 1.0)}
    return SPAM(sort_parameters(source).groups(weight_decay, **density), lr, **options)


def stable_spam(source: Any, lr: float, *, weight_decay: float = 0.0, **options: Any) -> Any:
    """Stable-SPAM."""
    return StableSPAM(sort_parameters(source).groups(weight_decay), lr, **options)


def adamw(source: Any, lr: float, *, weight_decay: float = 0.0, **options: Any) -> Any:
    """torch's AdamW, fused."""
    return torch.optim.AdamW(
        sort_parameters(source).groups(weight_decay), lr, fused=True, **options
    )


def adafactor(
    source: Any, lr: float, *, weight_decay: float = 0.0, betas: Any = None, eps: float = 1e-3
) -> Any:
    """torch's Adafactor; it has no betas, `eps` is the floor of its relative step."""
    groups = sort_parameters(source).groups(weight_decay)
    return torch.optim.Adafactor(groups, lr, eps=(None, eps))


def muon(
    source: Any,
    lr: float,
    *,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    momentum: float = 0.95,
) -> Any:
    """torch's Muon for hidden matrices, its steps as large as AdamW's; AdamW for the rest."""
    found = sort_parameters(source)
    flat = [(name, p) for name, p in found.hidden if p.ndim == 2]
    stacked = [(name, p) for name, p in found.hidden if p.ndim > 2]
    rest = Parameters([], [*stacked, *found.tables], found.vectors).groups(weight_decay)
    parts: dict[str, torch.optim.Optimizer] = {}
    if flat:
        parts["muon"] = torch.optim.Muon(
            flat, lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
        )
    if rest:
        parts["adamw"] = torch.optim.AdamW(rest, lr, betas=betas, eps=eps, fused=True)
    return Paired(parts)


def lion(
    source: Any,
    lr: float,
    *,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float | None = None,
) -> Any:
    """pytorch_optimizer's Lion; it has no eps."""
    library = package("pytorch_optimizer", "lion")
    return library.Lion(sort_parameters(source).groups(weight_decay), lr=lr, betas=betas)


def galore(
    source: Any,
    lr: float,
    *,
    weight_decay: float = 0.0,
    rank: int | None = None,
    **options: Any,
) -> Any:
    """pytorch_optimizer's GaLore, projecting the hidden matrices to `rank`."""
    library = package("pytorch_optimizer", "galore")
    # Its projector is kept in the state, an object that a checkpoint must be allowed to hold.
    projector = importlib.import_module("pytorch_optimizer.optimizer.utils.galore")
    torch.serialization.add_safe_globals([projector.GaLoreProjector])
    found = sort_parameters(source)
    # Without `rank` in a group, it is plain Adam, silently.
    groups = found.groups(weight_decay, rank=rank or default_rank(found), **GALORE)
    return library.GaLore(groups, lr=lr, **options)


def apollo(
    source: Any,
    lr: float,
    *,
    weight_decay: float = 0.0,
    rank: int | None = None,
    **options: Any,
) -> Any:
    """APOLLO, ours: pytorch_optimizer 4.1's scales the projection and projects that back.

    Its update then has the projection's rank; the paper's is the whole gradient, scaled.
    """
    found = sort_parameters(source)
    groups = found.groups(weight_decay, rank=rank or default_rank(found))
    return APOLLO(groups, lr, **options)


def default_rank(found: Parameters) -> int:
    """A quarter of the hidden size, as GaLore's paper has it for 60M to 1B parameters."""
    sides = [min(p.shape) for _, p in found.hidden if p.ndim == 2]
    return max(1, min(sides, default=4) // 4)


def adam_mini(source: Any, lr: float, *, weight_decay: float = 0.0, **options: Any) -> Any:
    """pytorch_optimizer's Adam-mini: one second moment a head, or a row."""
    library = package("pytorch_optimizer", "adam-mini")
    config = getattr(source, "config", None)
    if not isinstance(source, nn.Module) or config is None:
        raise RequestError(
            "adam-mini needs the model itself, with its config: it counts attention heads",
            "build_optimizer('adam-mini', model, lr)",
        )
    heads = config.num_attention_heads
    return library.AdamMini(
        source,
        lr=lr,
        weight_decay=weight_decay,
        num_embeds=config.hidden_size,
        num_heads=heads,
        num_query_groups=getattr(config, "num_key_value_heads", None) or heads,
        **options,
    )


def soap(source: Any, lr: float, *, weight_decay: float = 0.0, **options: Any) -> Any:
    """pytorch_optimizer's SOAP: Adam in the eigenbasis of Shampoo."""
    library = package("pytorch_optimizer", "soap")
    return library.SOAP(sort_parameters(source).groups(weight_decay), lr=lr, **options)


def adamw_8bit(source: Any, lr: float, *, weight_decay: float = 0.0, **options: Any) -> Any:
    """bitsandbytes' AdamW with 8-bit moments; those of small tensors stay float32."""
    library = package("bitsandbytes", "adamw-8bit")
    groups = sort_parameters(source).groups(weight_decay)
    plain = [{**g, "params": [p for _, p in g["params"]]} for g in groups]
    return library.optim.AdamW8bit(plain, lr=lr, **options)


def state_size(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's state on this process, tensors inside other objects included."""
    states = [state for state in optimizer.state.values() if isinstance(state, dict)]
    return sum(_bytes(value) for state in states for value in state.values())


def _bytes(value: Any) -> int:
    if torch.is_tensor(value):
        own: Tensor = value.to_local() if hasattr(value, "to_local") else value
        return own.numel() * own.element_size()
    if isinstance(value, (list, tuple)):
        return sum(map(_bytes, value))
    return sum(map(_bytes, vars(value).values())) if hasattr(value, "__dict__") else 0
