"""The factors of one unit by every method, with what they lose before and after rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.lowrank.modules import Unit
from compress.lowrank.sequential import Pair, choose_beta, pair_loss, sequential
from compress.lowrank.settings import LowRankSettings
from compress.lowrank.spectra import gram_of, output_gram
from compress.lowrank.statistics import Inputs, PairSums, shrinkage
from compress.lowrank.truncate import curved, loss, projected, size_of_output, spectrum


@dataclass(frozen=True)
class Factors:
    """A unit as two thin matrices.

    Attributes:
        up: [out, rank], rounded to the dtype that is stored.
        down: [rank, in], likewise.
        shift: float64 [out], to be added to the biases; None where there is none.
        facts: for the plan's row: "error", "optimum", "stored_error" (relative, of the outputs on
            the calibration tokens) and what else the method tells.
    """

    up: Tensor
    down: Tensor
    shift: Tensor | None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def product(self) -> Tensor:
        """up · down, float64 [out, in]."""
        return self.up.double() @ self.down.double()

    def tensors(self, unit: Unit) -> dict[str, Tensor]:
        """The factors by layer: "NAME|up", and "NAME|down" of the layer that holds it."""
        parts = self.up.split([m.shape[0] for m in unit.matrices])
        found = {f"{m.name}|up": up for m, up in zip(unit.matrices, parts, strict=True)}
        found[f"{unit.name}|down"] = self.down
        if self.shift is not None:
            shifts = self.shift.split([m.shape[0] for m in unit.matrices])
            found |= {f"{m.name}|shift": s for m, s in zip(unit.matrices, shifts, strict=True)}
        return found


def factor(
    unit: Unit,
    weight: Tensor,
    rank: int,
    inputs: Inputs | None,
    settings: LowRankSettings,
    stored: torch.dtype,
    *,
    bias: bool,
    gradients: Mapping[str, Tensor] | None = None,
) -> Factors:
    """Make a unit's factors from the statistics of the dense model's inputs.

    Args:
        unit: which layers.
        weight: theirs, [out, in].
        rank: r.
        inputs: their statistics; None with plain SVD without calibration.
        settings: method, shrinkage, mean correction.
        stored: dtype of the factors in OUT.
        bias: whether all layers have one.
        gradients: of kfac: layer -> Γ.
    """
    centre = bias and settings.mean_correction and inputs is not None
    gram = gram_of(inputs, settings, centre=centre)
    if settings.method == "kfac":
        assert gradients is not None
        assert gram is not None
        gamma = output_gram(unit, gradients).to(weight.device)
        up, down, _ = curved(weight, gram.to(weight.device), gamma, rank)
    else:
        basis = spectrum(weight, None if gram is None else gram.to(weight.device)).basis
        assert basis is not None
        up, down = projected(weight, basis, rank)
    seen = None if inputs is None else inputs.matrix(centre=centre, damp=0.0).to(weight.device)
    rounded = up.to(stored), down.to(stored)
    facts = _facts(weight, (up, down), rounded, seen, rank)
    shift = None
    if centre and inputs is not None:
        shift = (weight.double() - rounded[0].double() @ rounded[1].double()) @ inputs.mean.to(
            weight.device
        )
    return Factors(*rounded, shift, facts)


def factor_sequential(
    unit: Unit,
    weight: Tensor,
    rank: int,
    fit: PairSums,
    held: PairSums | None,
    settings: LowRankSettings,
    stored: torch.dtype,
    *,
    bias: bool,
) -> Factors:
    """Make a unit's factors for the inputs that the compressed model gives it.

    Args:
        unit, weight, rank, settings, stored, bias: see `factor`.
        fit: sums of the tokens that are fitted.
        held: those of tokens held out, by which β is chosen; None where there are too few batches.
    """
    centre = bias and settings.mean_correction
    one = fit.pair(centre=centre)
    ridge = shrinkage(settings.damp, fit.rows, unit.into)
    facts: dict[str, Any] = {}
    if settings.beta != "auto":
        beta = float(settings.beta)
    elif held is None or fit.alike:
        beta = 1.0 if fit.alike else 0.5
    else:
        beta, _ = choose_beta(weight, one, held.pair(centre=centre), rank, ridge=ridge)
    if held is not None:
        trial = sequential(weight, one, rank, beta, ridge)
        facts |= _held(weight, trial, one, held.pair(centre=centre))
        one = one + held.pair(centre=centre)
    up, down = sequential(weight, one, rank, beta, ridge)
    rounded = up.to(stored), down.to(stored)
    whole = size_of_output(weight, one.dense)
    lost = best = pair_loss(weight, up, down, one)
    if (beta, ridge) != (1.0, 0.0):
        best = min(pair_loss(weight, *sequential(weight, one, rank, 1.0), one), lost)
    facts |= {
        "error": relative(lost, whole),
        "optimum": relative(best, whole),
        "stored_error": relative(pair_loss(weight, *rounded, one), whole),
        "beta": beta,
    }
    shift = None
    if centre:
        dense, own = _means(fit, held)
        product = rounded[0].double() @ rounded[1].double()
        shift = weight.double() @ dense - product @ own
    return Factors(*rounded, shift, facts)


def relative(lost: float, whole: float) -> float:
    """|Δ| / |W X| from squares, to six digits; 0 where the layer puts nothing out."""
    return float(f"{math.sqrt(lost / whole):.6g}") if whole > 0 else 0.0


def common_facts(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over units, for the header and the receipt."""
    rows = [facts for facts in found if "error" in facts]
    if not rows:
        return {}
    names = ("error", "optimum", "stored_error", "held_out_error")
    return {
        name: float(f"{sum(r[name] for r in rows) / len(rows):.6g}")
        for name in names
        if all(name in r for r in rows)
    }


def _facts(
    weight: Tensor,
    exact: tuple[Tensor, Tensor],
    rounded: tuple[Tensor, Tensor],
    gram: Tensor | None,
    rank: int,
) -> dict[str, Any]:
    whole = size_of_output(weight, gram)
    energy = spectrum(weight, gram, values_only=True).energy
    return {
        "error": relative(loss(weight, *exact, gram), whole),
        "optimum": relative(float(energy[rank:].sum()), whole),
        "stored_error": relative(loss(weight, *rounded, gram), whole),
    }


def _held(weight: Tensor, factors: tuple[Tensor, Tensor], fit: Pair, held: Pair) -> dict[str, Any]:
    """Errors on tokens fitted and held out, of factors that were made from the first alone."""
    return {
        name: relative(pair_loss(weight, *factors, pair), size_of_output(weight, pair.dense))
        for name, pair in (("fit_error", fit), ("held_out_error", held))
    }


def _means(fit: PairSums, held: PairSums | None) -> tuple[Tensor, Tensor]:
    """The mean inputs of both streams over all tokens."""
    parts = [part for part in (fit, held) if part is not None]
    rows = sum(part.rows for part in parts)
    sums = [[mean * part.rows for mean in part.means()] for part in parts]
    dense, own = (torch.stack(column).sum(0) / rows for column in zip(*sums, strict=True))
    return dense, own
