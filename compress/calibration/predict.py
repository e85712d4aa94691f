"""Cheap predictors of which calibration text is best for a task, before anything is pruned.

One dense pass over each text gives the norms of every matrix's inputs and the loss of the text.
Measures: how alike two texts' norms are; how much the sets of weights that Wanda would prune by
them overlap; the perplexity of the calibration text under the dense model (Ji et al.,
arXiv:2410.17711: similarity to the model's own training text matters more than quality); and,
without a model, how unlike two texts' tokens are distributed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compress.calibration.cola import Untouched, running_dtype
from compress.calibration.statistics import ColumnNorms
from compress.checkpoints.anatomy import Block, Matrix
from compress.checkpoints.source import Source
from compress.checkpoints.walk import BlockWeights, walk
from compress.errors import RunError
from compress.numerics.select import drop_smallest_per_row, spread_over_rows
from compress.progress import Progress, renamed, silent


@dataclass(frozen=True)
class Profile:
    """What a text does in a dense model.

    Attributes:
        norms: matrix -> root mean square of each input over the real tokens, float32 [in].
        loss: mean negative log likelihood of a token, or None where the model isn't causal.
        stderr: its standard error over windows, or None with one window.
        tokens: real tokens that were predicted.
        windows: mean loss of each window, float64.
    """

    norms: dict[str, Tensor]
    loss: float | None
    stderr: float | None
    tokens: int
    windows: Tensor

    @property
    def perplexity(self) -> float | None:
        """exp(loss), or None."""
        return None if self.loss is None else math.exp(self.loss)


class Prediction(NamedTuple):
    """How promising a calibration text is for a target."""

    similarity: float
    """Of the norms, in [-1, 1]; more is nearer."""
    overlap: float
    """Share of the weights pruned by either text that both prune, in [0, 1]."""
    perplexity: float | None
    """Of the calibration text under the dense model."""
    divergence: float
    """Of the token distributions, Jensen-Shannon, in bits, in [0, 1]; less is nearer."""


class _Norms(Untouched):
    """Collects the norms of all matrices' inputs, each shared input once."""

    def __init__(self) -> None:
        self.sums: dict[str, ColumnNorms] = {}
        self._recent: list[tuple[Tensor, ColumnNorms]] = []

    def stages(self, block: Block) -> Sequence[Sequence[str]]:
        """All matrices at once: nothing is edited between."""
        return [[matrix.name for matrix in block.matrices]]

    def observe(self, matrix: Matrix, inputs: dict[str, Tensor], keep: Tensor | None) -> None:
        """Add a batch's token rows."""
        (rows,) = inputs.values()
        for seen, sums in self._recent:
            if seen is rows:
                self.sums.setdefault(matrix.name, sums)
                return
        own = self.sums.setdefault(matrix.name, ColumnNorms(matrix.name))
        own.add(rows)
        self._recent = [*self._recent[-1:], (rows, own)]

    def values(self) -> dict[str, Tensor]:
        """Root mean squares; a matrix that no token reached (an expert) is absent."""
        return {
            name: sums.value() / math.sqrt(sums.rows)
            for name, sums in self.sums.items()
            if sums.rows
        }


def profile(
    source: Source,
    batches: Sequence[dict[str, Tensor]],
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress = silent,
) -> Profile:
    """Run a text through the dense model, one block in memory at a time: one pass.

    Args:
        source: the model.
        batches: a calibration set, or a task's text made into one.
        device, dtype: where the model runs, and in what type.
        progress: told of the blocks.

    Raises:
        RunError: an activation or a loss isn't finite.
    """
    method = _Norms()
    losses: dict[int, tuple[Tensor, Tensor]] = {}

    def heard(stream: str, batch: int, output: Any) -> None:
        logits = getattr(output, "logits", None)
        if logits is not None and logits.ndim == 3:
            losses[batch] = token_losses(logits, batches[batch])

    walk(
        source,
        batches,
        method,
        device=device,
        dtype=running_dtype(source, dtype, device),
        propagate="dense",
        on_output=heard,
        progress=renamed(progress, "profile"),
    )
    if not losses:
        return Profile(method.values(), None, None, 0, torch.empty(0, dtype=torch.float64))
    sums = torch.cat([losses[batch][0] for batch in sorted(losses)])
    counts = torch.cat([losses[batch][1] for batch in sorted(losses)])
    if not bool(torch.isfinite(sums).all()):
        raise RunError(
            "the loss of the calibration text is not finite", "try --dtype float32 or bfloat16"
        )
    windows = sums / counts.clamp(min=1)
    mean = float(sums.sum() / counts.sum())
    stderr = None
    if len(sums) > 1:
        part = counts / counts.sum()
        spread = (part**2 * (windows - mean) ** 2).sum() * len(sums) / (len(sums) - 1)
        stderr = math.sqrt(float(spread))
    return Profile(method.values(), mean, stderr, int(counts.sum()), windows)


def token_losses(logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return each window's summed next-token loss, and how many tokens were predicted, float64 [B].

    Args:
        logits: [B, T, V].
        batch: "input_ids" [B, T]; padding by "attention_mask", and the first token of a document
            that "position_ids" isolates, are not predicted.
    """
    ids = batch["input_ids"].to(logits.device)
    wanted = torch.ones_like(ids, dtype=torch.bool)
    if "attention_mask" in batch:
        wanted &= batch["attention_mask"].to(ids.device).bool()
    if "position_ids" in batch:
        wanted &= batch["position_ids"].to(ids.device) != 0
    sums, counts = [], []
    for row, tokens, keep in zip(logits, ids, wanted[:, 1:]):
        each = torch.nn.functional.cross_entropy(
            row[:-1][keep].float(), tokens[1:][keep], reduction="sum"
        )
        sums.append(each.double().cpu())
        counts.append(keep.sum().double().cpu())
    return torch.stack(sums), torch.stack(counts)


def similarity(first: Profile, second: Profile) -> float:
    """How alike two texts' norms are: the correlation of log norms, averaged over matrices.

    Norms are centred within a matrix, so that a text that is louder all over is no less alike. A
    matrix whose norms are all equal tells nothing and is left out.
    """
    found = []
    for name in first.norms.keys() & second.norms.keys():
        one, other = (p.norms[name].double().clamp(min=1e-12).log() for p in (first, second))
        one, other = one - one.mean(), other - other.mean()
        size = one.norm() * other.norm()
        if size > 0:
            found.append(float(one @ other / size))
    return sum(found) / len(found) if found else 0.0


class _Overlap(Untouched):
    """Counts the weights that Wanda would prune by one text, by another, and by both."""

    def __init__(self, profiles: Sequence[Profile], target: Profile, sparsity: float) -> None:
        self._profiles, self._target, self._sparsity = profiles, target, sparsity
        self.both = [0] * len(profiles)
        self.either = [0] * len(profiles)

    def stages(self, block: Block) -> Sequence[Sequence[str]]:
        """The matrices that all texts reached."""
        names = set(self._target.norms)
        for each in self._profiles:
            names = names & each.norms.keys()
        return [[matrix.name for matrix in block.matrices if matrix.name in names]]

    def edit(self, block: Block, names: Sequence[str], weights: BlockWeights) -> None:
        """Compare the masks; the weights stay."""
        for name in names:
            weight = weights.read(name).float().abs()
            target = self._pruned(weight, self._target.norms[name])
            for i, each in enumerate(self._profiles):
                own = self._pruned(weight, each.norms[name])
                self.both[i] += int((own & target).sum())
                self.either[i] += int((own | target).sum())

    def _pruned(self, weight: Tensor, norms: Tensor) -> Tensor:
        score = weight * norms.to(weight.device)
        counts = spread_over_rows(round(self._sparsity * score.numel()), len(score))
        return ~drop_smallest_per_row(score, counts)


def mask_overlaps(
    source: Source,
    profiles: Sequence[Profile],
    target: Profile,
    *,
    sparsity: float = 0.5,
    device: str = "cpu",
) -> list[float]:
    """How alike Wanda's masks by several texts are to that by a target.

    Args:
        source: the model, of whose weights one block is in memory at a time.
        profiles: of the texts.
        target: of the text to compare with.
        sparsity: share of each matrix that is pruned, in (0, 1).
        device: where masks are made.

    Returns:
        Of each text the weights that both masks prune, by those that either prunes (Jaccard).

    Raises:
        ValueError: sparsity out of range.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"a sparsity between 0 and 1 is needed, not {sparsity}")
    method = _Overlap(profiles, target, sparsity)
    walk(source, [], method, device=device, dtype=running_dtype(source, None, device))
    return [b / max(e, 1) for b, e in zip(method.both, method.either)]


def token_divergence(
    first: Sequence[Mapping[str, Tensor]], second: Sequence[Mapping[str, Tensor]]
) -> float:
    """Return the Jensen-Shannon divergence of two sets' token frequencies, in bits, in [0, 1]."""
    counts = [_token_counts(batches) for batches in (first, second)]
    size = max(len(count) for count in counts)
    shares = []
    for count in counts:
        padded = torch.zeros(size, dtype=torch.float64)
        padded[: len(count)] = count.double()
        shares.append(padded / padded.sum())
    middle = (shares[0] + shares[1]) / 2
    parts = [torch.xlogy(p, p / middle.clamp(min=1e-300)).sum() for p in shares]
    return float(sum(parts)) / 2 / math.log(2)


def _token_counts(batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    ids = []
    for batch in batches:
        mask = batch.get("attention_mask")
        rows = batch["input_ids"]
        ids.append(rows.flatten() if mask is None else rows[mask.bool()])
    return torch.bincount(torch.cat(ids).cpu())


def predict(
    source: Source,
    texts: Mapping[str, Sequence[dict[str, Tensor]]],
    target: Sequence[dict[str, Tensor]],
    *,
    sparsity: float = 0.5,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress = silent,
) -> dict[str, Prediction]:
    """Say of several calibration sets how promising each is for a target.

    Args:
        source: the dense model.
        texts: name -> calibration set.
        target: the task's text as batches, such as `calibration_set` of its calibration split, or
            `make_batches` of its items.
        sparsity: at which the masks are compared.
        device, dtype: where the model runs, and in what type.
        progress: told of the blocks of each text.

    Returns:
        name -> Prediction, in the order of `texts`. Costs a forward pass over each text and the
        target, and one read of the weights.
    """
    options: dict[str, Any] = {"device": device, "dtype": dtype, "progress": progress}
    goal = profile(source, target, **options)
    profiles = {name: profile(source, batches, **options) for name, batches in texts.items()}
    overlaps = mask_overlaps(
        source, list(profiles.values()), goal, sparsity=sparsity, device=device
    )
    return {
        name: Prediction(
            similarity(own, goal), overlap, own.perplexity, token_divergence(texts[name], target)
        )
        for (name, own), overlap in zip(profiles.items(), overlaps)
    }
