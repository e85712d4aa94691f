"""The walks: layers are measured and condensed one block at a time, and run in condensed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoints.anatomy import Block, Matrix
from compress.checkpoints.block_weights import BlockWeights
from compress.checkpoints.edits.dense_mlp import DenseMLP
from compress.checkpoints.edits.gated_dense_mlp import GatedDenseMLP
from compress.checkpoints.replay import BlockRuns
from compress.experts.capture import capture
from compress.experts.condensing import Condensed, Recipe, condense_layer
from compress.experts.journal import LayerJournal
from compress.experts.layers import ExpertLayer, gated_weights
from compress.experts.merge import GatedMLP

STREAM = "model"


class Looks:
    """A walk's method that edits no matrix."""

    def stages(self, block: Block) -> Sequence[Sequence[str]]:
        """No matrix is observed by itself."""
        return []

    def observe(self, matrix: Matrix, inputs: dict[str, Tensor], keep: Tensor | None) -> None:
        """Nothing is observed."""

    def edit(self, block: Block, names: Sequence[str], weights: BlockWeights) -> None:
        """Nothing is edited."""

    def finish(self, block: Block, weights: BlockWeights) -> None:
        """Nothing is left to do."""


class Condenser(Looks):
    """Measures expert layers as a walk reaches them, and keeps their condensed forms.

    Args:
        layers: the layers to condense.
        recipe: how.
        journal: where the results go; layers that are there already are not made again.
        final_norm: name of the norm behind the last block, for the published objective.
        last: number of the last block.
        sequential: condensed layers take the place of the originals at once, so that later layers
            are fitted to what they return; else every layer is fitted to the model as it was.
    """

    def __init__(
        self,
        layers: Sequence[ExpertLayer],
        recipe: Recipe,
        journal: LayerJournal,
        *,
        final_norm: str | None = None,
        last: int = -1,
        sequential: bool = False,
    ) -> None:
        self._layers = {layer.block: layer for layer in layers}
        self._recipe, self._journal = recipe, journal
        self._final_norm, self._last, self._sequential = final_norm, last, sequential

    def replay(self, runs: BlockRuns) -> None:
        """Condense the block's layer, where it has one that isn't done."""
        layer = self._layers.get(runs.block.name)
        if layer is None:
            return
        if layer not in self._journal:
            self._journal.write(self._condense(runs, layer))
        if self._sequential:
            made = self._journal.read(layer)
            runs.weights.replace(layer.name, stand_in(made, runs.module(layer.name)))

    def _condense(self, runs: BlockRuns, layer: ExpertLayer) -> Condensed:
        experts = [layer.expert(runs.weights, number) for number in range(layer.count)]
        shared = gated_weights(runs.module(layer.shared), layer.shared) if layer.shared else None
        gating: Any = runs.module(layer.shared_gate) if layer.shared_gate else None
        gate = None if gating is None else gating.weight.detach()
        act: Any = runs.module(layer.experts).act_fn
        data = capture(runs, layer, STREAM, residual=self._recipe.residual)
        norm: Any = None
        if self._final_norm and layer.index == self._last:
            norm = runs.module(self._final_norm)

        def after(h: Tensor) -> Tensor:
            return h if norm is None else norm(h.to(norm.weight.dtype)).float()

        return condense_layer(layer, experts, shared, gate, data, act, self._recipe, after)


class Replaced(Looks):
    """Runs condensed layers in some streams of a walk.

    Args:
        journal: holds them.
        streams: stream -> the layers that are condensed there.
        stored: dtype that the weights will have on disk; they are rounded to it.
    """

    def __init__(
        self,
        journal: LayerJournal,
        streams: Mapping[str, Sequence[ExpertLayer]],
        stored: torch.dtype | None = None,
    ) -> None:
        self._journal, self._streams, self._stored = journal, streams, stored

    def replay(self, runs: BlockRuns) -> None:
        """Put the condensed layer of this block into the streams that have it."""
        made: dict[str, nn.Module] = {}
        for stream, layers in self._streams.items():
            for layer in (each for each in layers if each.block == runs.block.name):
                if layer.name not in made:
                    found = self._journal.read(layer)
                    made[layer.name] = stand_in(found, runs.module(layer.name), self._stored)
                runs.weights.replace(layer.name, made[layer.name], stream)


def stand_in(made: Condensed, old: nn.Module, stored: torch.dtype | None = None) -> nn.Module:
    """Return a module that computes a condensed layer, called as the old one is.

    Args:
        made: the condensed layer.
        old: the module that it replaces, loaded.
        stored: dtype to which weights are rounded first.
    """
    place = next(p for p in old.parameters() if p.is_floating_point())
    act: Any = old.get_submodule("experts").act_fn
    hidden = made.layer.hidden
    where = {"device": place.device, "dtype": place.dtype}
    new: DenseMLP
    if made.gate is not None and made.shared is not None:
        new = GatedDenseMLP(hidden, made.width or None, made.shared.width, act, where)
        _fill(new.shared_expert, made.shared, stored)
        _copy(new.shared_expert_gate, made.gate, stored)
    else:
        new = DenseMLP(hidden, made.width, act, pair=made.layer.scales_input, place=where)
    if made.mlp is not None:
        _fill(new, made.mlp, stored)
    return new.eval().requires_grad_(False)


def _fill(module: Any, mlp: GatedMLP, stored: torch.dtype | None) -> None:
    for part, value in zip(("gate_proj", "up_proj", "down_proj"), mlp, strict=True):
        _copy(getattr(module, part), value, stored)


def _copy(linear: nn.Linear, value: Tensor, stored: torch.dtype | None) -> None:
    with torch.no_grad():
        linear.weight.copy_(value.to(stored or value.dtype))
