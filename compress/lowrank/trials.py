"""Whole models tried with some layers truncated: how far their outputs move.

The dense model is whole in memory for this, and beside it the truncated bases of the layers, about
as much again. Outputs are compared at up to 256 positions of each sequence, past its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.checkpoints.anatomy import matrix_view
from compress.checkpoints.source import Source
from compress.lowrank.modules import Unit
from compress.lowrank.settings import LowRankSettings
from compress.lowrank.spectra import gram_of, has_bias, stacked
from compress.lowrank.store import StatisticsStore
from compress.lowrank.truncate import spectrum
from compress.progress import Progress

TEMPERATURE = 0.6  # LEMS's
_SKIPPED = 256  # first tokens, where sequences are long enough
_POSITIONS = 256


class Trials:
    """The dense model, its outputs, and truncated weights to put in.

    Args:
        source: the model.
        units: the layers.
        store: statistics of their inputs.
        settings: method (kfac and sequential are tried as whiten), shrinkage.
        batches: sequences that are compared.
        device, dtype: of the run.
        progress: told of each trial.
    """

    def __init__(
        self,
        source: Source,
        units: Sequence[Unit],
        store: StatisticsStore,
        settings: LowRankSettings,
        batches: Sequence[Mapping[str, Any]],
        *,
        device: str,
        dtype: torch.dtype,
        progress: Progress,
    ) -> None:
        self._model = source.load(dtype, device)
        self._state = dict(self._model.named_parameters(remove_duplicate=False))
        self._units = {unit.name: unit for unit in units}
        self._batches = [
            {k: v.to(device) if isinstance(v, Tensor) else v for k, v in b.items()} for b in batches
        ]
        self._progress = progress
        self._wanted = [self._outputs(batch) for batch in self._batches]
        self._bases = self._decompose(store, settings)

    @torch.inference_mode()
    def divergence(self, ranks: Mapping[str, int]) -> float:
        """Return how far the outputs move where the units named have these ranks.

        The mean Kullback-Leibler divergence of the dense model's next-token (or class)
        distribution, at LEMS's temperature; without logits the relative squared error.
        """
        before = {}
        for name, rank in ranks.items():
            for matrix, part in self._truncated(name, rank):
                view = matrix_view(self._state[matrix.parameter].data, matrix)
                before[matrix.name] = (view, view.clone())
                view.copy_(part)
        try:
            found = [
                float(_distance(wanted, self._outputs(batch)))
                for wanted, batch in zip(self._wanted, self._batches, strict=True)
            ]
        finally:
            for view, value in before.values():
                view.copy_(value)
        return sum(found) / len(found)

    def alone(self, ranks: Mapping[str, int]) -> dict[str, float]:
        """Return the divergence with each unit truncated by itself."""
        found = {}
        for number, (name, rank) in enumerate(ranks.items()):
            self._progress("trials", number, len(ranks), name)
            found[name] = self.divergence({name: rank})
        self._progress("trials", len(ranks), len(ranks))
        return found

    def _decompose(self, store: StatisticsStore, settings: LowRankSettings) -> dict[str, Tensor]:
        found = {}
        blocks = list(dict.fromkeys(unit.block for unit in self._units.values()))
        tensors = {name: p.detach() for name, p in self._state.items()}
        for number, block in enumerate(blocks):
            self._progress("bases", number, len(blocks), block)
            known = store.inputs(block)
            for unit in (u for u in self._units.values() if u.block == block):
                centre = settings.mean_correction and has_bias(unit, tensors)
                gram = gram_of(known.get(unit.name), settings, centre=centre)
                weight = stacked(unit, tensors)
                gram = None if gram is None else gram.to(weight.device)
                basis = spectrum(weight, gram).basis
                assert basis is not None
                found[unit.name] = basis.float()
        self._progress("bases", len(blocks), len(blocks))
        return found

    def _truncated(self, name: str, rank: int) -> list[tuple[Any, Tensor]]:
        unit, up = self._units[name], self._bases[name][:, :rank].double()
        tensors = {m.parameter: self._state[m.parameter].detach() for m in unit.matrices}
        product = up @ (up.T @ stacked(unit, tensors).double())
        parts = product.split([m.shape[0] for m in unit.matrices])
        return list(zip(unit.matrices, parts, strict=True))

    @torch.inference_mode()
    def _outputs(self, batch: Mapping[str, Any]) -> Tensor:
        """Log-probabilities [positions, classes], or hidden states where there are no logits."""
        output = self._model(**batch)
        logits = getattr(output, "logits", None)
        values = logits if isinstance(logits, Tensor) else output[0]
        mask = batch.get("attention_mask")
        if values.ndim == 3:
            first = _SKIPPED if values.shape[1] > 2 * _SKIPPED else 0
            step = max(1, (values.shape[1] - first) // _POSITIONS)
            values = values[:, first::step]
            if mask is not None and mask.ndim == 2 and not bool(mask.all()):
                kept = mask[:, first::step]
                values = values[kept.bool()] if kept.shape == values.shape[:2] else values
        values = values.reshape(-1, values.shape[-1]).float()
        if isinstance(logits, Tensor):
            return (values / TEMPERATURE).log_softmax(-1)
        return values


def _distance(wanted: Tensor, found: Tensor) -> Tensor:
    if bool((wanted <= 0).all()):  # log-probabilities, which hidden states never are all through
        return (wanted.exp() * (wanted - found)).sum(-1).mean()
    return (found - wanted).square().sum() / wanted.square().sum().clamp(min=1e-30)
