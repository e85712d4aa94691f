"""ATP: shares in a straight line over the blocks, its slope searched on held-out calibration text.

The slope's candidates are pruned together, each a stream of one walk, with the method and the
calibration windows of the run (at most SEARCH_WINDOWS of them), and the one whose pruned model has
the least loss on the held-out windows is taken. No statistic sees those windows, and the text of
the evaluation is in neither. (The authors choose by the perplexity of the test set.)

Source: ATP, arXiv:2502.14770.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.checkpoints.placement import compute_dtype, resolve_dtype
from compress.checkpoints.walk import walk
from compress.errors import RequestError, RunError
from compress.progress import renamed
from compress.sparsity.allocators.ground import Ground, Measured
from compress.sparsity.allocators.maps import by_line, line, steepest
from compress.sparsity.branches import Branch, Branches
from compress.sparsity.pruner import Target

SEARCH_WINDOWS = 32  # the ranking of a few slopes needs fewer windows than the pruning itself
_FINE = 2  # of the candidates, so many refine the best of the others


def measure_atp(ground: Ground) -> Measured:
    """The line with the slope asked for, or with the best of the candidates.

    Raises:
        RequestError: a slope outside the limit that the bounds set; nothing held out to search by.
    """
    settings, blocks = ground.settings, len(ground.blocks)
    limit = steepest(settings.share, blocks, ground.bounds)
    if settings.atp_beta == "auto":
        beta, record = _searched(ground, limit)
    else:
        beta = float(settings.atp_beta)
        record = {"beta": beta, "limit": limit, "searched": False}
        if beta > limit + 1e-12:
            raise RequestError(
                f"`--atp-beta {beta:g}` leaves the bounds {ground.bounds[0]:g} to "
                f"{ground.bounds[1]:g} over {blocks} blocks: 0 to {limit:g} can be reached",
                "or leave it out, and it is searched",
            )
    shares = line(settings.share, beta, blocks).tolist()
    by_block = dict(zip(ground.blocks, shares))
    values = {m.name: by_block[m.block] for m in ground.matrices}
    return Measured({"block": values}, record=record, column="line")


def coarse_slopes(limit: float, count: int) -> list[float]:
    """The candidates of the first walk: evenly from 0, the last one step below the limit."""
    first = max(count - _FINE, 1) if count > _FINE + 1 else count
    return [limit * i / first for i in range(first)]


def fine_slopes(best: float, limit: float, tried: Sequence[float], count: int) -> list[float]:
    """The candidates that are left after the first walk: half a step to both sides of the best."""
    left = count - len(tried)
    if left <= 0 or limit == 0:
        return []
    step = limit / len(tried)
    near = [best + step / 2, best - step / 2 if best > 0 else step / 4]
    return near[:left]


def _searched(ground: Ground, limit: float) -> tuple[float, dict[str, Any]]:
    settings = ground.settings
    if not ground.held_out:
        raise RequestError(
            "`--allocation atp` searches its slope on held-out calibration text, and there is none",
            "give --calib a text, or the slope by --atp-beta",
        )
    count = settings.atp_candidates if limit > 0 else 1
    losses: dict[float, float] = {}
    tried = coarse_slopes(limit, count)
    losses |= _losses(ground, tried, 1)
    fine = fine_slopes(_best(losses), limit, tried, count)
    if fine:
        losses |= _losses(ground, fine, 2)
    best = _best(losses)
    record = {
        "beta": best,
        "limit": limit,
        "searched": True,
        "held_out_windows": _rows(ground.held_out),
        "statistics_windows": _rows(_search_batches(ground)),
        "candidates": [{"beta": b, "loss": losses[b]} for b in sorted(losses)],
    }
    return best, record


def _best(losses: dict[float, float]) -> float:
    return min(sorted(losses), key=lambda beta: losses[beta])


def _losses(ground: Ground, slopes: Sequence[float], part: int) -> dict[float, float]:
    """Prune with every slope in one walk; the mean loss of each on the held-out windows.

    Args:
        ground: what the allocation rests on.
        slopes: the candidates.
        part: of the search, 1 or 2, for the progress.
    """
    settings, source = ground.settings, ground.source
    dtype = resolve_dtype(settings.dtype)
    running = dtype or compute_dtype(source.dtype, ground.device)
    options = {
        # A refit of whole blocks, stages and permutations have no place in lockstep, and change
        # little about which slope is best.
        "refit": settings.refit if settings.refit in ("none", "exact", "cg") else "none",
        "damp": settings.damp,
        "block_size": settings.block_size,
        "stored": dtype or source.dtype,
    }
    names = {f"beta {slope:g} ({i})": slope for i, slope in enumerate(slopes)}
    branches = {
        name: Branch(_targets(ground, slope), settings.method, options)
        for name, slope in names.items()
    }
    batches = _search_batches(ground)
    tokens = {len(batches) + i: batch for i, batch in enumerate(ground.held_out)}
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def heard(stream: str, batch: int, output: object) -> None:
        if batch in tokens:
            found[stream].append(_window_losses(output, tokens[batch]))

    walk(
        source,
        batches,
        Branches(branches),
        device=ground.device,
        dtype=running if running != source.dtype else None,
        streams=list(names),
        progress=renamed(ground.progress, f"atp {part}/2"),
        on_output=heard,
        held_out=ground.held_out,
    )
    means = {slope: float(torch.cat(found[name]).mean()) for name, slope in names.items()}
    return {s: _finite(loss, s) for s, loss in means.items()}


def _targets(ground: Ground, slope: float) -> dict[str, Target]:
    groups = [m.block for m in ground.matrices]
    shares = by_line(groups, ground.sizes, ground.settings.share, slope, bounds=ground.bounds)
    assert ground.targets is not None
    return dict(ground.targets(shares))


def _search_batches(ground: Ground) -> list[dict[str, Tensor]]:
    chosen: list[dict[str, Tensor]] = []
    for batch in ground.batches:
        if _rows(chosen) >= SEARCH_WINDOWS:
            break
        chosen.append(batch)
    return chosen


def _rows(batches: Sequence[dict[str, Tensor]]) -> int:
    return sum(len(batch["input_ids"]) for batch in batches)


def _window_losses(output: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean next-token loss of each window, padding not counted, float64 [B]."""
    losses = []
    ids = batch["input_ids"].to(output.logits.device)
    lengths = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum(1).tolist()
    for logits, tokens, length in zip(output.logits, ids, lengths):
        predicted, wanted = logits[: length - 1].float(), tokens[1:length]
        losses.append(torch.nn.functional.cross_entropy(predicted, wanted))
    return torch.stack(losses).double().cpu()


def _finite(loss: float, slope: float) -> float:
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise RunError(
            f"the loss of slope {slope:g} on the held-out windows is {loss}",
            "run in float32 or bfloat16 with --dtype",
        )
    return loss
