"""How much rank each block gets, by its depth.

A share a_l of a layer's smaller side, l = 0 … L - 1 in its stack (LR-SMS, arXiv:2410.07771, which
leaves direction and end points open): a_l = a (1 ± s (2 l / (L - 1) - 1)), s 0.5 by default.
Whatever the schedule, the ranks of a stack sum to those of the uniform run, so that two runs differ
in where rank lies, not in how much there is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compress.errors import RequestError
from compress.numerics.allocation import allocate, largest_remainder

SCHEDULES = ("uniform", "linear-up", "linear-down")
SLOPE = 0.5


def depth_shares(schedule: str, ratio: float, depth: int, slope: float = SLOPE) -> list[float]:
    """Return each block's share of rank.

    Args:
        schedule: a name of SCHEDULES, or shares with commas, one a block.
        ratio: the mean share, in (0, 1].
        depth: blocks of the stack.
        slope: half the spread around the mean, from 0 to 1.

    Raises:
        RequestError: an unknown schedule, shares outside (0, 1] or not as many as blocks.
    """
    if schedule in SCHEDULES:
        if schedule == "uniform" or depth == 1:
            return [ratio] * depth
        sign = 1.0 if schedule == "linear-up" else -1.0
        raw = [ratio * (1 + sign * slope * (2 * i / (depth - 1) - 1)) for i in range(depth)]
        return [min(max(share, 1e-9), 1.0) for share in raw]
    shares = parse_shares(schedule)
    if len(shares) != depth:
        raise RequestError(
            f"`--rank-schedule {schedule}` has {len(shares)} shares, and the model {depth} blocks",
            f"give one a block, or one of {', '.join(SCHEDULES)}",
        )
    return shares


def parse_shares(text: str) -> list[float]:
    """Read shares with commas.

    Raises:
        RequestError: one is no number in (0, 1].
    """
    shares = []
    for part in text.split(","):
        try:
            share = float(part)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise RequestError(
                f"`--rank-schedule {text}` is neither a schedule nor shares in (0, 1]",
                f"{', '.join(SCHEDULES)}, or such as 0.5,0.25,0.12",
            )
        shares.append(share)
    return shares


def uniform_ranks(sides: Sequence[int], ratio: float) -> list[int]:
    """Return round(ratio * side), from 1, for the smaller side of each layer."""
    return [max(1, round(ratio * side)) for side in sides]


def scheduled_ranks(
    sides: Sequence[int],
    blocks: Sequence[int],
    ratio: float,
    schedule: str = "uniform",
    slope: float = SLOPE,
    depth: int | None = None,
) -> list[int]:
    """Return the rank of each layer of one stack.

    Args:
        sides: smaller side of each layer.
        blocks: number of each layer's block.
        ratio: mean share of rank.
        schedule, slope: see depth_shares.
        depth: blocks of the stack; None counts to the last one named.

    Returns:
        From 1 to the side; with a named schedule their sum is that of uniform_ranks. A list of
        shares is taken as it is.

    Raises:
        RequestError: as depth_shares.
    """
    many = max(blocks) + 1 if depth is None else depth
    shares = depth_shares(schedule, ratio, many, slope)
    plain = uniform_ranks(sides, ratio)
    if schedule not in SCHEDULES:
        return [max(1, round(shares[block] * side)) for block, side in zip(blocks, sides)]
    if len({shares[block] for block in blocks}) == 1:
        return plain
    total, sizes = sum(plain), torch.tensor(sides, dtype=torch.float64)
    wanted = torch.tensor([shares[block] for block in blocks], dtype=torch.float64)
    met = allocate(wanted, sizes, total / float(sizes.sum()), bounds=(0.0, 1.0))
    upper = torch.tensor(sides, dtype=torch.int64)
    return _from_one(largest_remainder(met * sizes, total, upper=upper).tolist(), met * sizes)


def _from_one(ranks: list[int], exact: torch.Tensor) -> list[int]:
    """Lift ranks of 0 to 1, at the cost of those furthest above their exact share."""
    while 0 in ranks:
        ranks[ranks.index(0)] = 1
        over = [r - float(e) if r > 1 else -float("inf") for r, e in zip(ranks, exact)]
        most = max(range(len(over)), key=over.__getitem__)
        if over[most] == -float("inf"):  # all are 1: their sum is what can be had
            break
        ranks[most] -= 1
    return ranks
