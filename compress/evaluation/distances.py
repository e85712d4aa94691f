"""How far two versions of a model are apart, block by block: in weights and in what blocks return.

Weights: ||W_b - W_a|| / ||W_a||, Frobenius, over all parameters of a block, factors multiplied out.
Activations: both models run on the same windows, each on its own hidden states; of a block's
outputs h [tokens, width] the relative error ||h_b - h_a|| / ||h_a|| over all tokens, and the mean
over tokens of the cosine. The two run in lockstep: one block of each is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.checkpoints.activations import Activations
from compress.checkpoints.anatomy import Block, read_anatomy
from compress.checkpoints.block_store import BlockStore
from compress.checkpoints.effective import (
    Compared,
    block_weights,
    compare_weights,
    named_weights,
)
from compress.checkpoints.gathering import first_tensor
from compress.checkpoints.loader import REST, BlockLoader, skeleton
from compress.checkpoints.placement import compute_dtype
from compress.checkpoints.source import Source
from compress.errors import RequestError, RunError
from compress.progress import Progress, silent


@dataclass(frozen=True)
class Part:
    """The distance of one block, or of what lies outside the blocks.

    Attributes:
        name: the block's; empty for what lies outside.
        weights: every weight of both models.
        error: relative error of the block's output; None where it was not measured.
        cosine: mean cosine of the outputs of one token; None likewise.
    """

    name: str
    weights: tuple[Compared, ...]
    error: float | None = None
    cosine: float | None = None

    @property
    def distance(self) -> float | None:
        """Relative Frobenius distance over the weights that can be compared; None for none."""
        known = [weight.squares for weight in self.weights if weight.squares is not None]
        return _relative(sum(d for d, _ in known), sum(s for _, s in known)) if known else None

    @property
    def unlike(self) -> tuple[Compared, ...]:
        """The weights that can't be subtracted."""
        return tuple(weight for weight in self.weights if weight.squares is None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values; what was not measured is absent."""
        entry: dict[str, Any] = {"block": self.name} if self.name else {}
        values = {"weights": self.distance, "activations": self.error, "cosine": self.cosine}
        entry.update({key: value for key, value in values.items() if value is not None})
        modules = []
        for weight in self.weights:
            row: dict[str, Any] = {"module": weight.name, "shape": list(weight.shape)}
            own = None if weight.squares is None else _relative(*weight.squares)
            if own is not None:
                row["distance"] = own
            else:
                row["reason"] = weight.reason or "all zeros in the model compared with"
            modules.append(row)
        return {**entry, "modules": modules}


@dataclass(frozen=True)
class Distances:
    """How far a model is from another.

    Attributes:
        blocks: in order.
        outside: embeddings, last norms and heads.
        data: spec, windows, seqlen, tokens and seed of the text, where the models were run.
    """

    blocks: tuple[Part, ...]
    outside: Part
    data: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain values: "blocks", "outside" and, where the models were run, "data"."""
        found = {"blocks": [p.as_dict() for p in self.blocks], "outside": self.outside.as_dict()}
        return {**found, "data": dict(self.data)} if self.data else found


def _relative(difference: float, size: float) -> float | None:
    """Return sqrt(difference / size): 0 where nothing differs, None where the size is 0."""
    if difference == 0:
        return 0.0
    return math.sqrt(difference / size) if size > 0 else None


class _Side:
    """One of the two models, of which one block at a time is in memory."""

    def __init__(self, source: Source, dtype: torch.dtype, device: str) -> None:
        self.name = source.name
        self.model = skeleton(source, dtype)
        self.blocks = read_anatomy(self.model).blocks
        names = [block.name for block in self.blocks]
        self.loader = BlockLoader(source, self.model, blocks=names, dtype=dtype, device=device)
        self.store = BlockStore(self.loader, {})

    def activations(
        self, batches: Sequence[Mapping[str, Tensor]], heard: Callable[[str, int, Tensor], None]
    ) -> Activations:
        """Return forwards of all batches; `heard` gets a block, a batch and its hidden states."""

        def on_block(block: Block, stream: str, batch: int, output: object) -> None:
            hidden = first_tensor(output)
            if hidden is not None:
                heard(block.name, batch, hidden)

        names = [block.name for block in self.blocks]
        return Activations(self.model, batches, [self.name], names, self.loader.device, on_block)


class Pair:
    """Two versions of one model, opened and found comparable.

    Args:
        base: the model compared with.
        other: the model that is compared.
        dtype: to compute in; None is the one on disk, or float32 where that is no faster or the
            two differ.
        device: where they run.

    Raises:
        RequestError: models of different classes, numbers of blocks or vocabularies.
    """

    def __init__(
        self, base: Source, other: Source, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> None:
        kinds = base.model_class().__name__, other.model_class().__name__
        if kinds[0] != kinds[1]:
            raise RequestError(
                f"`--distances`: `{other.name}` is a `{kinds[1]}` and `{base.name}` a `{kinds[0]}`",
                "layers are compared between versions of one model; leave --distances out",
            )
        self.base_source, self.source = base, other
        size = max(base.bytes_on_disk(), other.bytes_on_disk())
        running = torch.float32 if base.dtype != other.dtype else base.dtype
        chosen = dtype or compute_dtype(running, device, size)
        self.base, self.other = _Side(base, chosen, device), _Side(other, chosen, device)
        counts = len(self.base.blocks), len(self.other.blocks)
        if [b.name for b in self.base.blocks] != [b.name for b in self.other.blocks]:
            raise RequestError(
                f"`--distances`: `{other.name}` has {counts[1]} blocks and `{base.name}` has "
                f"{counts[0]}, so that none stands for another",
                "layers are compared between versions of one model; leave --distances out",
            )
        self.why_not = _cannot_run(base, other)
        if not self.why_not:
            _check_vocabularies(base, other)
            _check_widths(self.base, self.other)

    def measure(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        data: Mapping[str, Any],
        progress: Progress = silent,
    ) -> Distances:
        """Load both models block by block, and run them on the batches if there are any.

        Args:
            batches: keyword arguments of the models' forward, one dict a batch.
            data: what the batches are, for the result.
            progress: told of each block.

        Raises:
            RequestError: a weight can't be loaded; blocks are called in different orders.
            RunError: an activation isn't finite; names the block.
        """
        weights: dict[str, tuple[Compared, ...]] = {}
        sums: dict[str, _Sums] = {}
        with torch.no_grad():
            self.base.loader.load_rest()
            self.other.loader.load_rest()
            rest = [named_weights(s.loader.tensors(REST)) for s in (self.base, self.other)]
            outside = Part("", tuple(compare_weights(*rest)))
            if batches:
                self._run(batches, weights, sums, progress)
            for number, block in enumerate(self.base.blocks):
                if block.name not in weights:  # no batch has run through it
                    progress("distances", number, len(self.base.blocks), block.name)
                    self._load(block.name, weights)
            for side in (self.base, self.other):
                side.store.unload()
        progress("distances", len(self.base.blocks), len(self.base.blocks))
        parts = tuple(
            Part(block.name, weights[block.name], *sums[block.name].result())
            if block.name in sums
            else Part(block.name, weights[block.name])
            for block in self.base.blocks
        )
        return Distances(parts, outside, data if batches else {})

    def _load(self, name: str, weights: dict[str, tuple[Compared, ...]]) -> list[Any]:
        """Load a block of both models, and compare its weights the first time."""
        held, read = [], []
        for side in (self.base, self.other):
            block = next(block for block in side.blocks if block.name == name)
            held.append(side.store.load(block, [side.name]))
            read.append(block_weights(side.model, block) if name not in weights else None)
        if read[0] is not None and read[1] is not None:
            weights[name] = tuple(compare_weights(read[0], read[1]))
        return held

    def _run(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        weights: dict[str, tuple[Compared, ...]],
        sums: dict[str, _Sums],
        progress: Progress,
    ) -> None:
        """Run both models in lockstep: a block of the one on all batches, then of the other."""
        waiting: dict[int, Tensor] = {}  # outputs of the base, which its forwards hold anyway

        def keep(name: str, batch: int, hidden: Tensor) -> None:
            waiting[batch] = hidden

        def compare(name: str, batch: int, hidden: Tensor) -> None:
            first = waiting.pop(batch, None)
            if first is not None and first.shape == hidden.shape:
                mask = other.token_mask(name, batch)
                sums.setdefault(name, _Sums()).add(first, hidden, mask)

        base, other = self.base.activations(batches, keep), self.other.activations(batches, compare)
        with base, other:
            base.start()
            other.start()
            while (name := base.next_block()) is not None:
                if other.next_block() != name:
                    raise RequestError(
                        f"`--distances`: `{self.other.name}` and `{self.base.name}` call their "
                        f"blocks in different orders (at `{name}`)",
                        "leave --distances out",
                    )
                progress("distances", len(weights), len(self.base.blocks), name)
                held = self._load(name, weights)
                waiting.clear()
                for running, block in zip((base, other), held):
                    _propagate(running, block)


def _propagate(running: Activations, block: Any) -> None:
    try:
        running.propagate(block)
    except RunError as error:
        raise RunError(
            error.message, "the model overflows in its dtype, or is damaged: try --dtype float32"
        ) from error


class _Sums:
    """Running sums over the tokens of all batches, in float64."""

    def __init__(self) -> None:
        self.difference = self.size = self.cosines = 0.0
        self.tokens = 0

    def add(self, first: Tensor, second: Tensor, mask: Tensor | None) -> None:
        """Add a batch: hidden states [B, T, width] of both models, and which tokens count."""
        if mask is not None and mask.shape == first.shape[:2]:
            first, second = first[mask.bool()], second[mask.bool()]
        one, other = first.flatten(0, -2).double(), second.flatten(0, -2).double()
        sizes, others = one.square().sum(-1), other.square().sum(-1)
        dot = (one * other).sum(-1)
        cosine = dot / (sizes * others).sqrt()  # of equal vectors exactly 1: sqrt(s * s) is s
        both = (sizes == 0) & (others == 0)
        cosine = torch.where(both, 1.0, torch.where((sizes == 0) | (others == 0), 0.0, cosine))
        self.difference += float((other - one).square().sum())
        self.size += float(sizes.sum())
        self.cosines += float(cosine.sum())
        self.tokens += len(cosine)

    def result(self) -> tuple[float | None, float | None]:
        """Return the relative error and the mean cosine; None where no token counted."""
        if not self.tokens:
            return None, None
        return _relative(self.difference, self.size), self.cosines / self.tokens


def _cannot_run(base: Source, other: Source) -> str:
    """Return why the two can't be run on text, or nothing."""
    for source in (base, other):
        kind = source.model_class()
        if kind.main_input_name != "input_ids":
            return f"`{source.name}` takes `{kind.main_input_name}`, no text"
        if source.tokenizer() is None:
            return f"`{source.name}` has no tokenizer"
    return ""


def _check_vocabularies(base: Source, other: Source) -> None:
    """Refuse tokenizers of which none's tokens are all the other's, under the same numbers."""
    one, two = (source.tokenizer().get_vocab() for source in (base, other))  # type: ignore[union-attr]
    small, large = sorted((one, two), key=len)
    odd = next((token for token, number in small.items() if large.get(token) != number), None)
    if odd is not None:
        raise RequestError(
            f"`--distances`: `{other.name}` and `{base.name}` have different vocabularies (such as "
            f"the token {odd!r}), so that they can't read the same tokens",
            "layers are compared between versions of one model; leave --distances out",
        )


def _check_widths(base: _Side, other: _Side) -> None:
    """Refuse models whose residual streams have different widths."""
    tables: list[Any] = [side.model.get_input_embeddings() for side in (base, other)]
    one, two = (table.weight.shape[-1] for table in tables)
    if one != two:
        raise RequestError(
            f"`--distances`: `{other.name}` has hidden states of {two} features and "
            f"`{base.name}` of {one}",
            "layers are compared between versions of one model; leave --distances out",
        )
