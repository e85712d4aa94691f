"""Scores of coupled units by which they are ranked; higher is kept longer.

Every criterion gives a score to each unit of a group from all that the group couples, divided by
the group's mean, so that groups of different sizes can be ranked together. Those that read weights
need no data; the others look at gradients of masks on what reads the units (`masks.py`), so that
one backward pass scores every group at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.channels.groups import Group, unit_rows
from compress.channels.masks import Masks
from compress.errors import RunError
from compress.numerics.counter import generator
from compress.progress import Progress, silent

Score = Callable[[nn.Module, Group], Tensor]
_CHUNK = 1 << 24  # distances at a time


def l1(model: nn.Module, group: Group) -> Tensor:
    """Mean absolute weight of a unit's rows, mean over the writers [width].

    Source: Li et al., arXiv:1608.08710.
    """
    return torch.stack([unit_rows(model, m).abs().mean(1) for m in _written(group)]).mean(0)


def l2(model: nn.Module, group: Group) -> Tensor:
    """Root mean square of a unit's rows, mean over the writers [width]."""
    rows = [unit_rows(model, m).square().mean(1).sqrt() for m in _written(group)]
    return torch.stack(rows).mean(0)


def batch_norm(model: nn.Module, group: Group) -> Tensor:
    """Mean |scale| of the norms over the units [width]; L1 where a group has none.

    Source: Network Slimming, arXiv:1708.06519.
    """
    if not group.norms:
        return l1(model, group)
    return torch.stack([unit_rows(model, m).abs().mean(1) for m in group.norms]).mean(0)


def fpgm(model: nn.Module, group: Group) -> Tensor:
    """Distance of a unit's rows to all others of its group, summed [width].

    Units near the geometric median can be replaced by the others. Source: arXiv:1811.00250, eq. 6.
    """
    rows = torch.cat([unit_rows(model, m) for m in _written(group)], dim=1).float()
    step = max(1, _CHUNK // max(1, len(rows)))
    return torch.cat([torch.cdist(part, rows).sum(1) for part in rows.split(step)])


def group_norm(model: nn.Module, group: Group) -> Tensor:
    """Squared norm of all that a unit takes away, rows, columns and scales, mean over members.

    Source: DepGraph, arXiv:2301.12900, eq. 4 (there a sum, whose mean is the same ranking).
    """
    members = [m for m in group.members if m.kind in ("conv", "grouped", "linear", "norm")]
    members += [m for m in group.members if m.kind == "depthwise"]
    return torch.stack([unit_rows(model, m).square().sum(1) for m in members]).mean(0)


WEIGHTS: Mapping[str, Score] = {
    "l1": l1,
    "l2": l2,
    "bn": batch_norm,
    "fpgm": fpgm,
    "group": group_norm,
}
GRADIENTS = ("taylor", "fisher")
CRITERIA = ("random", *WEIGHTS, *GRADIENTS)


@torch.no_grad()
def weight_scores(model: nn.Module, groups: Sequence[Group], name: str) -> list[Tensor]:
    """Score by weights alone.

    Args:
        model: the dense model.
        groups: its groups.
        name: a key of WEIGHTS.

    Returns:
        For each group float64 [width] on the CPU, mean 1.
    """
    scores = [WEIGHTS[name](model, group).double().cpu() for group in groups]
    return [_normalised(score, group) for score, group in zip(scores, groups, strict=True)]


def random_scores(groups: Sequence[Group], seed: int) -> list[Tensor]:
    """Draw scores from [0, 1): float64 [width] for each group, by (seed, number of the group)."""
    return [
        torch.rand(group.width, generator=generator(seed, number), dtype=torch.float64)
        for number, group in enumerate(groups)
    ]


def gradient_scores(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Iterable[Mapping[str, Tensor]],
    name: str,
    *,
    total: int = 0,
    progress: Progress = silent,
) -> list[Tensor]:
    """Score by what the loss would feel of a unit's mask.

    taylor: sum over batches of (dL/dm_j)², L the mean loss of the batch (Molchanov et al.,
    arXiv:1906.10771). fisher: sum over images of (dL_n/dm_j)² / 2, the diagonal of the loss's
    second order (Theis et al., arXiv:1801.05787; Liu et al., arXiv:2108.00708): a mask for each
    image, still one backward pass.

    Args:
        model: in evaluation mode; its weights get no gradient.
        groups: its groups.
        batches: {"pixel_values", "labels"} on any device.
        name: one of GRADIENTS.
        total: batches, for progress.
        progress: called after each.

    Raises:
        RunError: a gradient isn't finite.
    """
    place = next(model.parameters())
    sums = [torch.zeros(g.width, dtype=torch.float64, device=place.device) for g in groups]
    trains = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trains:
            parameter.requires_grad_(False)
        with Masks(model, groups) as masks, torch.enable_grad():
            for number, batch in enumerate(batches):
                gradients = _mask_gradients(model, masks, batch, place, name == "fisher")
                for one, gradient in zip(sums, gradients, strict=True):
                    squared = gradient.double().square()
                    one += squared.sum(0) / 2 if name == "fisher" else squared
                progress("scores", number + 1, max(total, number + 1), name)
    finally:
        for parameter in trains:
            parameter.requires_grad_(True)
    if not all(bool(torch.isfinite(one).all()) for one in sums):
        raise RunError(
            "a gradient of the masks isn't finite", "look at the weights: compress inspect MODEL"
        )
    return [_normalised(one.cpu(), group) for one, group in zip(sums, groups, strict=True)]


def _mask_gradients(
    model: nn.Module, masks: Masks, batch: Mapping[str, Tensor], place: Tensor, each: bool
) -> list[Tensor]:
    """Return dL/dm [width] for each group; `each`: of every image's own loss [B, width]."""
    images = batch["pixel_values"].to(place.device, place.dtype)
    labels = batch["labels"].to(place.device)
    shape = [len(images)] if each else []
    values = [
        torch.ones(*shape, group.width, dtype=place.dtype, device=place.device, requires_grad=True)
        for group in masks.groups
    ]
    masks.set(values)
    logits = model(pixel_values=images).logits
    loss = functional.cross_entropy(logits.float(), labels, reduction="sum" if each else "mean")
    return list(torch.autograd.grad(loss, values))


def _written(group: Group) -> list:
    """Return the members whose rows the units are."""
    return [m for m in group.writers if m.kind in ("conv", "grouped", "linear")]


def _normalised(score: Tensor, group: Group) -> Tensor:
    """Divide by the group's mean; a group that is nothing but zeros stays so."""
    mean = score.mean()
    return score / mean if float(mean) > 0 else score
