"""Which experts a condensed layer keeps, and with which constants.

Letters: E experts, N = E + 1 columns of the products (0 is the shared MLP), K kept experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from compress.experts.statistics import SHARED, ExpertStatistics, Fit

_RIDGE = 1e-9  # of the mean diagonal: two experts may be equal


class Chosen(NamedTuple):
    """The experts that a layer keeps."""

    experts: tuple[int, ...]
    """In the order in which they were chosen."""
    constants: Tensor
    """[N] float64: what each MLP's output is multiplied by; 0 for those that go."""


def least_squares(fit: Fit, columns: list[int], fixed: Tensor | None = None) -> Tensor:
    """Return the constants [N] of some columns that bring their sum nearest to the outputs.

    Args:
        fit: the products.
        columns: which columns may have a constant other than 0.
        fixed: constants [N] of other columns, which stay.
    """
    out = torch.zeros_like(fit.right) if fixed is None else fixed.to(fit.right).clone()
    if not columns:
        return out
    index = torch.tensor(columns, device=fit.gram.device)
    out[index] = 0.0
    own = fit.gram[index][:, index].clone()
    own.diagonal().add_(_RIDGE * own.diagonal().mean().clamp(min=1e-300))
    out[index] = torch.linalg.solve(own, fit.right[index] - fit.gram[index] @ out)
    return out


def greedy_least_squares(
    fit: Fit, count: int, shared: bool, fixed: Tensor | None = None
) -> list[int]:
    """Choose experts one by one, each the one that lowers the least-squares error most.

    Orthogonal matching pursuit on whole outputs: the drop that column e brings to the error of the
    columns K is (b_e - G_eK a)^2 / (G_ee - G_eK G_KK^-1 G_Ke).

    Args:
        fit: the products.
        count: how many experts to keep.
        shared: whether column 0 is among the columns from the start.
        fixed: constants [N] of columns that stay as they are.

    Returns:
        Experts in the order of choice: any prefix is the choice of that size.
    """
    kept = [SHARED] if shared and fixed is None else []
    order: list[int] = []
    diagonal = fit.gram.diagonal()
    for _ in range(count):
        constants = least_squares(fit, kept, fixed)
        residual = fit.right - fit.gram @ constants
        free = diagonal.clone()
        if kept:
            index = torch.tensor(kept, device=fit.gram.device)
            block = fit.gram[index][:, index].clone()
            block.diagonal().add_(_RIDGE * block.diagonal().mean().clamp(min=1e-300))
            cross = fit.gram[index]  # [k, N]
            free -= (cross * torch.linalg.solve(block, cross)).sum(0)
        usable = free > _RIDGE * diagonal.clamp(min=1e-300)
        gain = torch.where(usable, residual.square() / free.clamp(min=1e-300), 0.0)
        gain[[SHARED, *(e + 1 for e in order)]] = -1.0
        best = int(gain.argmax())
        order.append(best - 1)
        kept.append(best)
    return order


def constants_of(
    statistics: ExpertStatistics,
    experts: list[int],
    *,
    how: str,
    shared: bool,
    share: float = 1.0,
    scales_input: bool = False,
    fixed: Tensor | None = None,
) -> Tensor:
    """Return the constants [N] of the experts kept and of the shared MLP.

    Args:
        statistics: of the layer.
        experts: the experts kept.
        how: "conditional-mean" (Condense-MoE) or "least-squares".
        shared: whether the layer has a shared MLP.
        share: factor on the sum of routed and shared outputs.
        scales_input: the routing weight is in the expert's input already.
        fixed: constants [N] of columns that stay as they are.
    """
    columns = [e + 1 for e in experts]
    if how == "least-squares":
        kept = [SHARED, *columns] if shared and fixed is None else columns
        return least_squares(statistics.fit, kept, fixed)
    out = torch.zeros_like(statistics.fit.right)
    mean = statistics.conditional_mean().to(out)
    for expert in experts:
        out[expert + 1] = share * (1.0 if scales_input else mean[expert])
    if fixed is not None:
        out[SHARED] = fixed[SHARED]
    elif shared:
        out[SHARED] = share * statistics.gate
    return out


def by_score(statistics: ExpertStatistics, name: str, count: int) -> list[int]:
    """Return the experts with the largest scores, the largest first.

    Raises:
        KeyError: no score has this name.
    """
    if name == "do-acp":
        return _determinantal(statistics, count)
    scores = SCORES[name](statistics)
    order = torch.sort(scores, descending=True, stable=True).indices
    return [int(e) for e in order[:count]]


def _acp(s: ExpertStatistics) -> Tensor:
    return s.conditional_mean() * (s.power / s.tokens).sqrt()


SCORES: dict[str, Callable[[ExpertStatistics], Tensor]] = {
    "frequency": lambda s: s.count / s.tokens,
    "soft-frequency": lambda s: s.mass / s.tokens,
    "cp": lambda s: s.conditional_mean(),
    "ean": lambda s: s.norm,
    "reap": lambda s: s.weighted_norm / s.count.clamp(min=1),
    "mass": lambda s: s.weighted_norm,
    "acp": _acp,
}
"""Scores of experts from one pass, [E], the largest kept: frequency; mean routing weight (cp,
soft); EAN, REAP (arXiv:2510.13999) and its undivided form (mass); ACP (arXiv:2605.28207)."""


def _determinantal(s: ExpertStatistics, count: int) -> list[int]:
    """Choose greedily by log det(K + lambda I), K_ij = sqrt(I_i I_j) E<f_i, f_j>, I = ACP.

    Source: DO-ACP (arXiv:2605.28207); lambda = mean(diag K) / count.
    """
    importance = _acp(s).to(s.fit.gram)
    kernel = s.fit.gram[1:, 1:] / s.fit.tokens
    kernel = importance.sqrt()[:, None] * kernel * importance.sqrt()[None]
    kernel.diagonal().add_(kernel.diagonal().mean() / max(count, 1))
    order: list[int] = []
    for _ in range(count):
        free = kernel.diagonal().clone()
        if order:
            index = torch.tensor(order)
            cross = kernel[index]
            free -= (cross * torch.linalg.solve(kernel[index][:, index], cross)).sum(0)
        free[order] = -torch.inf
        order.append(int(free.argmax()))
    return order
