"""An order of input channels in which N:M keeps more, as RIA finds it. Pure functions on tensors.

Which M columns share a group is free if whatever feeds the columns can be put in the same order.
Columns are sorted by their total score and dealt out in snakes, so that no group gets only strong
ones; then, slot by slot, the columns of that slot are given to the groups anew, by the best
assignment there is.

Letters: R rows, G groups of M columns. Of a group with one place free, v_r is the N-th largest of
row r's other scores: a column x put there adds Σ_r max(x_r - v_r, 0), whatever the rest is.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# Rows that the assignment looks at: a sample, evenly spaced, of larger matrices.
_ROWS = 1024


def retained(score: Tensor, n: int, m: int) -> float:
    """The sum of the scores that N:M keeps, in float64.

    Args:
        score: [R, G * M], >= 0.
        n, m: N of every M consecutive columns are kept.
    """
    groups = score.unflatten(1, (-1, m))
    return float(groups.topk(n, dim=2).values.sum(dtype=torch.float64))


def channel_order(score: Tensor, n: int, m: int, *, rounds: int = 1) -> Tensor:
    """An order of the columns in which N:M keeps at least the score that it keeps in theirs.

    Args:
        score: [R, G * M], >= 0, of any float dtype.
        n, m: 0 < N < M, M divides the columns.
        rounds: how often every slot is assigned anew.

    Returns:
        int64 [G * M] on score's device, a permutation: column order[j] comes to place j. The
        identity where nothing better was found.

    Cost: rounds * M assignments of G to G, and G² * min(R, 1024) for the gains of each.
    Source: Zhang et al., Plug-and-Play, ICLR 2024, section 3.3. Departures: the gains are exact (a
    distance between columns and thresholds), on a sample of rows where there are many.
    """
    width = score.shape[1]
    stay = torch.arange(width, device=score.device)
    if width == m:
        return stay
    seen = score[:: max(len(score) // _ROWS, 1)].to(torch.promote_types(score.dtype, torch.float32))
    groups = _dealt(seen.sum(0, dtype=torch.float64), m)
    for _ in range(rounds):
        for slot in range(m):
            groups[:, slot] = groups[_assigned(seen, groups, slot, n), slot]
    order = groups.sort(dim=1).values  # a place inside a group means nothing
    order = order[order[:, 0].argsort()].flatten()
    return order if retained(score[:, order], n, m) > retained(score, n, m) else stay


def _dealt(total: Tensor, m: int) -> Tensor:
    """[G, M]: columns by falling total, dealt to the groups there and back."""
    rounds = total.argsort(descending=True, stable=True).view(m, -1).clone()
    rounds[1::2] = rounds[1::2].flip(1)
    return rounds.t().contiguous()


def _assigned(score: Tensor, groups: Tensor, slot: int, n: int) -> Tensor:
    """[G]: which group's column of this slot each group gets."""
    others = [s for s in range(groups.shape[1]) if s != slot]
    rest = score[:, groups[:, others].flatten()].unflatten(1, (len(groups), -1))
    threshold = rest.topk(n, dim=2).values[..., -1].t().contiguous()
    column = score[:, groups[:, slot]].t().contiguous()
    # Σ max(x - v, 0) is half of Σ |x - v| + Σ x - Σ v, whose last two no assignment changes.
    gain = torch.cdist(threshold, column, p=1)
    _, chosen = linear_sum_assignment(gain.double().cpu().numpy(), maximize=True)
    return torch.from_numpy(chosen).to(groups.device)
