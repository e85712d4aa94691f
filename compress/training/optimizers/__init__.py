"""Optimizers that stay healthy, SPAM and Stable-SPAM, and the baselines beside them, by name.

A baseline comes from the library that keeps it; parameters are sorted into groups here. After its
first step an optimizer's state is compared with what its method promises: some fall back to plain
Adam without a word.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import RequestError, RunError, near_names
from compress.training.optimizers import baselines
from compress.training.optimizers.apollo import APOLLO
from compress.training.optimizers.base import BadOption, check_common
from compress.training.optimizers.baselines import state_size
from compress.training.optimizers.spam import SPAM
from compress.training.optimizers.stable_spam import StableSPAM

__all__ = ["OPTIMIZERS", "SPAM", "OptimizerInfo", "StableSPAM", "build_optimizer", "state_size"]

_SLACK = 1.05  # small buffers and scalars beside the moments
_PER_TENSOR = 256  # bytes


@dataclass(frozen=True)
class OptimizerInfo:
    """An optimizer that `build_optimizer` knows.

    Attributes:
        name: as asked for.
        package: where it comes from.
        state: its state in words, in bytes a parameter.
        bytes_of: most bytes of state of a parameter, from its shape, whether it is a hidden matrix
            and the optimizer's options, for float32 parameters.
        make: called with (model or named parameters, lr, **options).
    """

    name: str
    package: str
    state: str
    bytes_of: Callable[[torch.Size, bool, dict[str, Any]], float]
    make: Callable[..., torch.optim.Optimizer]

    @property
    def options(self) -> tuple[str, ...]:
        """Options that it takes, beside the learning rate."""
        return tuple(sorted(_options(self)))


def _adam(shape: torch.Size, hidden: bool, options: dict[str, Any]) -> float:
    return 8.0 * shape.numel()


def _spam(shape: torch.Size, hidden: bool, options: dict[str, Any]) -> float:
    # Beside the moments, 8 bytes for each chosen block of (mostly) 128 entries.
    return (8.0625 * options.get("density", 1.0) if hidden else 8.0) * shape.numel() + 8 * 128


def _half(shape: torch.Size, hidden: bool, options: dict[str, Any]) -> float:
    return 4.0 * shape.numel()


def _factored(shape: torch.Size, hidden: bool, options: dict[str, Any]) -> float:
    rows = shape[:-1].numel() + shape[:-2].numel() * shape[-1] if len(shape) > 1 else shape.numel()
    return 4.0 * rows


def _muon(shape: torch.Size, hidden: bool, options: dict[str, Any]) -> float:
    return (4.0 if hidden and len(shape) == 2 else 8.0) * shape.numel()


def _projected(shape: torch.Size, hidden: bool, options: dict[str, Any]) -> float:
    if not hidden or len(shape) != 2:
        return 8.0 * shape.numel()
    rank = min(options["rank"], *shape)
    return 4.0 * rank * (2 * max(shape) + 2 * min(shape))


def _mini(shape: torch.Size, hidden: bool, options: dict[str, Any]) -> float:
    return (4.0 if hidden else 8.0) * shape.numel() + 4.0 * shape[0]


def _soap(shape: torch.Size, hidden: bool, options: dict[str, Any]) -> float:
    sides = [side for side in shape if len(shape) > 1 and side <= 10_000]
    return 8.0 * shape.numel() + 8.0 * sum(side * side for side in sides)


def _eight_bit(shape: torch.Size, hidden: bool, options: dict[str, Any]) -> float:
    return (2.1 if shape.numel() >= 4096 else 8.0) * shape.numel() + 2048


def _infos() -> dict[str, OptimizerInfo]:
    torch_, ours, others = "torch", "compress", "pytorch_optimizer"
    found = [
        OptimizerInfo("spam", ours, "8, times density", _spam, baselines.spam),
        OptimizerInfo("stable-spam", ours, "8", _adam, baselines.stable_spam),
        OptimizerInfo("adamw", torch_, "8", _adam, baselines.adamw),
        OptimizerInfo("adafactor", torch_, "4 (1/rows + 1/columns)", _factored,
                      baselines.adafactor),
        OptimizerInfo("muon", torch_, "4, tables 8", _muon, baselines.muon),
        OptimizerInfo("lion", others, "4", _half, baselines.lion),
        OptimizerInfo("galore", others, "8 rank / short side, tables 8", _projected,
                      baselines.galore),
        OptimizerInfo("apollo", ours, "8 rank / short side, tables 8", _projected,
                      baselines.apollo),
        OptimizerInfo("adam-mini", others, "4, tables 8", _mini, baselines.adam_mini),
        OptimizerInfo("soap", others, "8, and two matrices a side", _soap, baselines.soap),
        OptimizerInfo("adamw-8bit", "bitsandbytes", "2, small tensors 8", _eight_bit,
                      baselines.adamw_8bit),
    ]  # fmt: skip
    return {info.name: info for info in found}


OPTIMIZERS = _infos()
"""The optimizers by name."""


def build_optimizer(
    name: str,
    model: nn.Module | Iterable[tuple[str, Tensor]],
    lr: float,
    **options: Any,
) -> torch.optim.Optimizer:
    """Make an optimizer for a model.

    Hidden matrices, tables (embeddings, head, routers) and vectors (norms, biases) get groups of
    their own: vectors don't decay, and density and rank are those of hidden matrices.

    Args:
        name: a key of OPTIMIZERS.
        model: a model, or its (name, parameter) pairs.
        lr: learning rate, > 0.
        options: betas, eps and weight_decay, which every one takes where it has them; and its own.

    Raises:
        RequestError: an unknown name, an option that it lacks or that is out of range, no parameter
            to train, a package that isn't installed.
        RunError: at the first step, a state larger than the method promises.
    """
    if name not in OPTIMIZERS:
        raise RequestError(f"there is no optimizer `{name}`", near_names(name, OPTIMIZERS))
    info = OPTIMIZERS[name]
    unknown = sorted(set(options) - _options(info))
    if unknown:
        raise RequestError(f"{name} has no option `{unknown[0]}`", f"it has {_listed(info)}")
    betas = options.get("betas", (0.9, 0.999))
    check_common(lr, betas, options.get("eps", 1e-8), options.get("weight_decay", 0.0))
    if options.get("rank") is not None and options["rank"] < 1:
        raise BadOption(f"rank is {options['rank']}, it must be at least 1")
    source = model if isinstance(model, nn.Module) else list(model)
    found = baselines.sort_parameters(source)
    if not any(True for _ in found):
        raise RequestError("the model has no parameter to train", "unfreeze some of it")
    optimizer = info.make(source, lr, **options)
    if name in ("galore", "apollo"):
        options = {"rank": baselines.default_rank(found), **options}
    _check_state_once(optimizer, info, found, options)
    return optimizer


def _options(info: OptimizerInfo) -> set[str]:
    found = set(inspect.signature(info.make).parameters) - {"source", "lr", "options"}
    classes: dict[str, type] = {"spam": SPAM, "stable-spam": StableSPAM, "apollo": APOLLO}
    if info.name in classes:
        return found | set(inspect.signature(classes[info.name]).parameters) - {"params", "lr"}
    return found | {"betas", "eps"}


def _listed(info: OptimizerInfo) -> str:
    return ", ".join(info.options)


def _check_state_once(
    optimizer: torch.optim.Optimizer,
    info: OptimizerInfo,
    found: baselines.Parameters,
    options: dict[str, Any],
) -> None:
    """Compare the state with the promise after the first step, then never again."""
    hidden = {id(p) for _, p in found.hidden}

    def check(*_: Any) -> None:
        handle.remove()
        stepped = [p for _, p in found if p in optimizer.state]
        if not stepped:  # ZeRO has put flat pieces of its own in the parameters' place
            return
        promised = sum(_promise(p, id(p) in hidden) for p in stepped)
        held = state_size(optimizer)
        if held > _SLACK * promised:
            raise RunError(
                f"{info.name} keeps {held:,} bytes of state, {promised:,.0f} were promised",
                f"report it, with the version of {info.package}; --optimizer adamw works",
            )

    def _promise(parameter: Tensor, hidden: bool) -> float:
        own: Any = parameter
        own = own.to_local() if hasattr(own, "to_local") else own
        share = own.numel() / max(parameter.numel(), 1)
        size = parameter.element_size()
        master = 0 if size >= 4 else 4 * parameter.numel()
        moments = info.bytes_of(parameter.shape, hidden, options) * max(size, 4) / 4
        return share * (moments + master) + _PER_TENSOR

    handle = optimizer.register_step_post_hook(check)
