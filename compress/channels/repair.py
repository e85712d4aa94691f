"""What brings a cut network back without training: batch norms, then least squares.

Order of worth per second (and of use): least squares on what reads the removed channels, before the
cut; running statistics of batch norms measured again, after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.channels.cutting import kept_places
from compress.channels.groups import Group
from compress.numerics.solve import damped_definite
from compress.progress import Progress, silent

Batches = Callable[[], Iterable[Mapping[str, Tensor]]]
"""Begins anew at every call."""

DAMP = 1e-2  # of the mean diagonal, as OSSCAR's code adds
_PLACES = 1024  # of an image that least squares looks at
_ROOM = 1 << 30  # bytes of Grams at once


@torch.no_grad()
def reestimate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    total: int = 0,
    progress: Progress = silent,
) -> int:
    """Measure the running statistics of batch norms anew, as plain means over the batches.

    All else stays in evaluation mode (dropout does nothing); no weight changes.

    Args:
        model: on its device.
        batches: with "pixel_values"; 10 to 50 do. Each counts alike.
        total: batches, for progress.
        progress: called after each.

    Returns:
        How many norms were measured; 0 where there are none.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return 0
    place = next(model.parameters())
    momentum = [norm.momentum for norm in norms]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of what is seen
            norm.train()
        for number, batch in enumerate(batches):
            model(pixel_values=batch["pixel_values"].to(place.device, place.dtype))
            progress("batch norms", number + 1, max(total, number + 1))
    finally:
        for norm, value in zip(norms, momentum, strict=True):
            norm.momentum = value
        for module, mode in training.items():
            module.training = mode
    return len(norms)


def refit(weight: Tensor, gram: Tensor, kept: Tensor, damp: float = DAMP) -> Tensor:
    """Fit the columns that stay so that the outputs change least.

        W_S* = W_S + W_R H_RS (H_SS + damp · mean(diag H_SS) · I)^-1,    H = X Xᵀ

    minimises ||W X - W_S* X_S||² + damp · mean(diag H_SS) · ||W_S* - W_S||²: a strong damping ends
    at plain dropping, and none of them does worse than it.

    Args:
        weight: [out, in].
        gram: [in, in], H.
        kept: int64 [k], columns that stay, in order.
        damp: relative to the mean of the diagonal; raised where H_SS is singular.

    Returns:
        float64 [out, k].

    Source: OSSCAR, arXiv:2403.12983, eq. 5; pulled to the old weights instead of to zero.
    """
    wide, gram = weight.double(), gram.double()
    gone = torch.ones(gram.shape[0], dtype=torch.bool, device=gram.device)
    gone[kept] = False
    removed = gone.nonzero()[:, 0]
    inner = damped_definite(gram[kept][:, kept], damp).matrix
    right = gram[kept][:, removed] @ wide[:, removed].T
    solved = torch.cholesky_solve(right, torch.linalg.cholesky(inner))
    return wide[:, kept] + solved.T


@torch.no_grad()
def least_squares(
    model: nn.Module,
    groups: Sequence[Group],
    masks: Sequence[Tensor],
    batches: Batches,
    *,
    total: int = 0,
    damp: float = DAMP,
    progress: Progress = silent,
) -> dict[str, tuple[float, float]]:
    """Let what stays of every consumer's input do the work of what goes, in place, before the cut.

    Inputs are those of the dense network, so that every consumer is fitted by itself and one pass
    serves all (several where their Grams don't fit together). Consumers without a free bias can't
    take up the mean of what goes; the batch norms behind them do when measured again.

    Args:
        model: the dense model, in evaluation mode.
        groups, masks: what will be cut.
        batches: calibration images; iterated anew for every pass.
        total: batches of a pass, for progress.
        damp: see `refit`.
        progress: called after each batch.

    Returns:
        Consumer -> relative squared error of its outputs on the calibration images, of plain
        dropping and after the fit.
    """
    kept = kept_places(model, groups, masks)
    names = [name for name, axis in kept if axis == "in" and _can_fit(model.get_submodule(name))]
    errors: dict[str, tuple[float, float]] = {}
    parts = list(_portions(model, names))
    for number, part in enumerate(parts):
        note = f"{number + 1} of {len(parts)}" if len(parts) > 1 else ""
        grams = _grams(model, part, batches, total, note, progress)
        for name in part:
            errors[name] = _fit(model.get_submodule(name), grams.pop(name), kept[name, "in"], damp)
    return errors


def _can_fit(module: Any) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d)) and getattr(module, "groups", 1) == 1


def _portions(model: nn.Module, names: Sequence[str]) -> Iterator[list[str]]:
    """Yield consumers whose Grams fit in memory together."""
    part: list[str] = []
    used = 0
    for name in names:
        size = 8 * (_features(model.get_submodule(name)) + 1) ** 2
        if part and used + size > _ROOM:
            yield part
            part, used = [], 0
        part.append(name)
        used += size
    if part:
        yield part


def _features(module: Any) -> int:
    return int(module.weight[0].numel())


def _grams(
    model: nn.Module,
    names: Sequence[str],
    batches: Batches,
    total: int,
    note: str,
    progress: Progress,
) -> dict[str, Tensor]:
    """Return H of each consumer's inputs, with a constant 1 as last feature, float64."""
    place = next(model.parameters())
    grams: dict[str, Tensor] = {}
    for name in names:
        size = _features(model.get_submodule(name)) + 1
        grams[name] = torch.zeros(size, size, dtype=torch.float64, device=place.device)

    def note_input(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            rows = _rows(module, inputs[0]).float()
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
            grams[name] += (rows.T @ rows).double()

        return hook

    with _hooked({name: model.get_submodule(name) for name in names}, note_input):
        for number, batch in enumerate(batches()):
            model(pixel_values=batch["pixel_values"].to(place.device, place.dtype))
            progress("least squares", number + 1, max(total, number + 1), note)
    return grams


@contextmanager
def _hooked(modules: Mapping[str, nn.Module], make: Callable[[str], Any]) -> Iterator[None]:
    hooks = [module.register_forward_pre_hook(make(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rows(module: Any, features: Tensor) -> Tensor:
    """Return the inputs of each output place as rows [places, in · kernel]."""
    if isinstance(module, nn.Linear):
        return features.reshape(-1, features.shape[-1])
    padding = module.padding
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        padding = [0, 0] if padding == "valid" else [r // 2 for r in reach]
    patches = functional.unfold(
        features, module.kernel_size, module.dilation, padding, module.stride
    )  # [B, in · kernel, places]
    every = math.ceil(patches.shape[-1] / _PLACES)
    return patches[..., ::every].transpose(1, 2).reshape(-1, patches.shape[1])


def _fit(module: Any, gram: Tensor, kept: Tensor, damp: float) -> tuple[float, float]:
    """Write the fitted columns into a consumer; return its errors before and after."""
    weight: Tensor = module.weight
    flat = weight.detach().double().flatten(1)
    kernel = flat.shape[1] // weight.shape[1]
    columns = kept.to(gram.device)[:, None] * kernel + torch.arange(kernel, device=gram.device)
    columns = columns.reshape(-1)
    free = module.bias is not None
    whole = torch.cat([flat, module.bias.detach().double()[:, None]], 1) if free else flat
    gram = gram if free else gram[:-1, :-1]
    if free:
        columns = torch.cat([columns, columns.new_tensor([flat.shape[1]])])
    fitted = refit(whole, gram, columns, damp)
    dropped = torch.zeros_like(whole)
    dropped[:, columns] = whole[:, columns]
    after = torch.zeros_like(whole)
    after[:, columns] = fitted
    result = _error(whole, dropped, gram), _error(whole, after, gram)
    if free:
        module.bias.copy_(after[:, -1])
        after = after[:, :-1]
    keep = torch.zeros(flat.shape[1], dtype=torch.bool, device=gram.device)
    keep[columns[:-1] if free else columns] = True
    weight.copy_(torch.where(keep, after, flat).reshape(weight.shape))
    return result


def _error(whole: Tensor, other: Tensor, gram: Tensor) -> float:
    """Return ||(W - V) X||² / ||W X||²."""
    left = whole - other
    size = float(((whole @ gram) * whole).sum())
    return max(0.0, float(((left @ gram) * left).sum())) / size if size > 0 else 0.0
