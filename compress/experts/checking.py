"""Whether a checkpoint that was written computes what the model in memory did."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoints.loader import skeleton
from compress.checkpoints.replay import BlockRuns
from compress.checkpoints.source import Source
from compress.checkpoints.walk import walk
from compress.experts.fewer import fewer_tensors
from compress.experts.journal import LayerJournal
from compress.experts.layers import ExpertLayer
from compress.experts.measuring import STREAM, Looks, Replaced

TOKENS = 32  # of the first calibration sequence
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of the logits' spread; 16-bit: 0.1


def check_written(
    source: Source,
    written: Source,
    condensed: Sequence[ExpertLayer],
    journal: LayerJournal,
    batch: Mapping[str, Tensor],
    options: Mapping[str, Any],
) -> float | None:
    """Run both on a few tokens, a block in memory at a time.

    Sums over a wider, padded layer may be taken in another order, and a router behind it may then
    choose otherwise: the comparison is of the median over tokens of the largest difference.

    Args:
        source: the model that was condensed.
        written: the checkpoint.
        condensed: its condensed layers.
        journal: their forms.
        batch: a calibration batch.
        options: device and dtype of the walks.

    Returns:
        None if they agree, else the difference, as a share of the logits' standard deviation.
    """
    short = {"input_ids": batch["input_ids"][:1, :TOKENS]}
    method = Replaced(journal, {STREAM: condensed}, written.dtype)
    wanted = _logits(source, method, short, options)
    return _differ(wanted, _logits(written, Looks(), short, options), written, options)


def check_fewer(
    source: Source,
    written: Source,
    layers: Sequence[ExpertLayer],
    journal: LayerJournal,
    batch: Mapping[str, Tensor],
    options: Mapping[str, Any],
) -> float | None:
    """As `check_written`, of layers that keep their router and fewer experts."""
    short = {"input_ids": batch["input_ids"][:1, :TOKENS]}
    target = skeleton(written)
    wanted = _logits(source, _Fewer(layers, journal, target, written.dtype), short, options)
    return _differ(wanted, _logits(written, Looks(), short, options), written, options)


class _Fewer(Looks):
    """Runs layers with fewer experts in the place of the source's.

    Args:
        layers: the layers.
        journal: holds their rows.
        target: the skeleton of the checkpoint written, whose modules are filled.
        stored: dtype that the weights have on disk.
    """

    def __init__(
        self,
        layers: Sequence[ExpertLayer],
        journal: LayerJournal,
        target: nn.Module,
        stored: torch.dtype,
    ) -> None:
        self._layers = {layer.block: layer for layer in layers}
        self._journal, self._target, self._stored = journal, target, stored

    def replay(self, runs: BlockRuns) -> None:
        """Put the smaller layer into this block."""
        layer = self._layers.get(runs.block.name)
        if layer is None:
            return
        old, prefix = runs.module(layer.name), f"{layer.name}."
        tensors = {prefix + name: value for name, value in old.state_dict().items()}
        fewer = fewer_tensors(tensors, layer, self._journal.row(layer))
        place = next(old.parameters())
        new = copy.deepcopy(self._target.get_submodule(layer.name))
        new = new.to_empty(device=place.device).eval().requires_grad_(False)
        kept = {name.removeprefix(prefix): self._rounded(value) for name, value in fewer.items()}
        new.load_state_dict(kept, assign=True)
        runs.weights.replace(layer.name, new)

    def _rounded(self, value: Tensor) -> Tensor:
        return value.to(self._stored).to(value.dtype) if value.is_floating_point() else value


def _differ(
    wanted: Tensor, found: Tensor, written: Source, options: Mapping[str, Any]
) -> float | None:
    """Return None if two models' logits [1, T, V] agree, else by how much they don't."""
    spread = float(wanted.std()) or 1.0
    worst = float((found - wanted).abs().amax(-1).median()) / spread
    running = options.get("dtype") or written.dtype
    return None if worst <= _TOLERANCE.get(running, 0.1) else worst


def _answer(output: Any) -> Tensor:
    """Return the logits; of a model without a head what it returns last."""
    logits = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits


def _logits(
    source: Source, method: Any, batch: Mapping[str, Tensor], options: Mapping[str, Any]
) -> Tensor:
    found: list[Tensor] = []
    walk(
        source,
        [dict(batch)],
        method,
        streams=(STREAM,),
        on_output=lambda stream, index, output: found.append(_answer(output).float().cpu()),
        **options,
    )
    return found[0]
