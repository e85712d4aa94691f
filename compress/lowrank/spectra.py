"""The spectra of all units: how much of its output each keeps at every rank, under a method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.checkpoints.anatomy import matrix_view
from compress.checkpoints.loader import BlockLoader, skeleton
from compress.checkpoints.source import Source
from compress.lowrank.modules import Unit
from compress.lowrank.settings import LowRankSettings
from compress.lowrank.statistics import Inputs, shrinkage
from compress.lowrank.store import BlockFiles, StatisticsStore
from compress.lowrank.truncate import scaled_gram, shrunk, spectrum
from compress.progress import Progress

GAMMA_SHRINKAGE = 0.3  # of output gradients (LEMS); 0.7 for vision there


class Weights:
    """Blocks of a checkpoint, one in memory at a time.

    Args:
        source: the checkpoint.
        blocks: their names.
        dtype: of the weights; None is the one on disk.
        device: where they are put.
    """

    def __init__(
        self,
        source: Source,
        blocks: Sequence[str],
        *,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
    ) -> None:
        model = skeleton(source, dtype)
        self.loader = BlockLoader(source, model, blocks=blocks, dtype=dtype, device=device)

    def each(
        self, blocks: Sequence[str], progress: Progress, task: str
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield (block, its tensors by run-time name)."""
        for number, block in enumerate(blocks):
            progress(task, number, len(blocks), block)
            self.loader.load(block)
            yield block, self.loader.tensors(block)
            self.loader.unload(block)
        progress(task, len(blocks), len(blocks))


def stacked(unit: Unit, tensors: Mapping[str, Tensor]) -> Tensor:
    """A unit's weight [out, in]: its layers', one below the other."""
    parts = [matrix_view(tensors[m.parameter], m) for m in unit.matrices]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def has_bias(unit: Unit, tensors: Mapping[str, Tensor]) -> bool:
    """Whether every layer of a unit has a bias, which can take up a shift of the mean."""
    return all(f"{m.module}.bias" in tensors for m in unit.matrices)


def gram_of(inputs: Inputs | None, settings: LowRankSettings, *, centre: bool) -> Tensor | None:
    """The Gram matrix that a method decomposes for; None for plain SVD."""
    if settings.method == "svd" or inputs is None:
        return None
    if settings.method == "asvd":
        return scaled_gram(inputs.mean_abs, settings.asvd_power)
    return inputs.matrix(centre=centre, damp=settings.damp)


def output_gram(unit: Unit, grams: Mapping[str, Tensor]) -> Tensor:
    """Γ of a unit, shrunk: block by block where layers share a factor."""
    parts = [shrunk(grams[m.name].double(), GAMMA_SHRINKAGE) for m in unit.matrices]
    return parts[0] if len(parts) == 1 else torch.block_diag(*parts)


def half(gram: Tensor) -> Tensor:
    """R [m, m] with RᵀR = Γ."""
    values, vectors = torch.linalg.eigh(gram)
    return (vectors * values.clamp(min=0).sqrt()).T


def measure_spectra(
    source: Source,
    units: Sequence[Unit],
    store: StatisticsStore | None,
    settings: LowRankSettings,
    *,
    gradients: BlockFiles | None = None,
    device: str = "cpu",
    progress: Progress,
) -> dict[str, Tensor]:
    """Decompose every unit, values only.

    Args:
        source: the model.
        units: what gets ranks.
        store: statistics of the inputs; None for plain SVD.
        settings: method, shrinkage, mean correction.
        gradients: of kfac: Γ of each layer, by block.
        device: where it is computed.
        progress: told of each block.

    Returns:
        Unit -> energies, float64, descending, on the CPU.
    """
    blocks = list(dict.fromkeys(unit.block for unit in units))
    weights = Weights(source, blocks, device=device)
    found: dict[str, Tensor] = {}
    for block, tensors in weights.each(blocks, progress, "spectra"):
        known = store.inputs(block) if store is not None else {}
        gammas = gradients.read(block) if gradients is not None else None
        for unit in (u for u in units if u.block == block):
            centre = settings.mean_correction and has_bias(unit, tensors)
            gram = gram_of(known.get(unit.name), settings, centre=centre)
            weight = stacked(unit, tensors).double()
            if gammas is not None:
                weight = half(output_gram(unit, gammas).to(weight.device)) @ weight
            gram = None if gram is None else gram.to(weight.device)
            found[unit.name] = spectrum(weight, gram, values_only=True).energy.cpu()
    return found


def errors_at(energy: Tensor, ranks: Sequence[int]) -> tuple[float, ...]:
    """The share of the output energy lost at each rank."""
    total = float(energy.sum())
    if total <= 0:
        return tuple(0.0 for _ in ranks)
    kept = energy.cumsum(0)
    return tuple(max(1.0 - float(kept[r - 1]) / total, 0.0) for r in ranks)


def few_tokens(
    units: Sequence[Unit], store: StatisticsStore, settings: LowRankSettings
) -> list[str]:
    """A note where Gram matrices were shrunk for lack of tokens."""
    few = []
    for block in dict.fromkeys(unit.block for unit in units):
        known: dict[str, Any] = store.inputs(block)
        few += [
            known[u.name].rows
            for u in units
            if u.block == block
            and u.name in known
            and settings.damp == "auto"
            and shrinkage("auto", known[u.name].rows, u.into) > 0
        ]
    if not few:
        return []
    return [
        f"{len(few)} layers saw fewer than 10 tokens a feature (at least {min(few)} tokens): "
        "their Gram matrices are shrunk by 0.01; more --samples fit better"
    ]
