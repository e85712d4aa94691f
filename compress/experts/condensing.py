"""One expert layer made dense: experts chosen, constants found, down projection refitted.

Letters: T tokens, H hidden size, E experts, W width of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.errors import RunError
from compress.experts.capture import LayerData
from compress.experts.divergence import greedy_divergence
from compress.experts.fewer import MERGE, PRUNE, clusters, kept_experts
from compress.experts.layers import ExpertLayer, apply_mlp
from compress.experts.merge import GatedMLP, merge_experts
from compress.experts.refit import normal_equations, ridge_refit
from compress.experts.selection import by_score, constants_of, greedy_least_squares
from compress.experts.statistics import (
    SHARED,
    ExpertStatistics,
    input_scales,
    measure_experts,
    tiles,
)
from compress.numerics.counter import permutation

_TILE = 4096  # tokens at a time


@dataclass(frozen=True)
class Recipe:
    """How layers are condensed.

    Attributes:
        experts: how many routed experts a layer keeps.
        score: greedy-ls, greedy-js, do-acp, random or a name of `selection.SCORES`.
        weights: conditional-mean or least-squares.
        refit: whether the down projection is refitted by ridge regression.
        shared_gate: constant, keep or refit.
        held_share: share of the tokens that are held out, for errors and the ridge.
        ridges: strengths that the refit may choose from.
        given: layer name -> (experts, constants of a plan) that aren't chosen again.
        mode: dense; or prune, merge: the layer stays sparse with fewer experts.
        groups: of experts that the router chooses among.
        seed: of random choices.
    """

    experts: int
    score: str = "greedy-ls"
    weights: str = "least-squares"
    refit: bool = True
    shared_gate: str = "refit"
    held_share: float = 0.1
    ridges: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
    given: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    mode: str = "dense"
    groups: int = 1
    seed: int = 0

    @property
    def residual(self) -> bool:
        """Whether choices look at the residual stream."""
        return self.score == "greedy-js"


@dataclass(frozen=True)
class Condensed:
    """A condensed layer.

    Attributes:
        layer: what it replaces.
        mlp: its weights in float32; None where nothing but a gated shared MLP is kept.
        shared, gate: the shared MLP and its gate's row [1, H], where the gate is kept.
        row: what is said of it in the plan.
    """

    layer: ExpertLayer
    mlp: GatedMLP | None
    shared: GatedMLP | None
    gate: Tensor | None
    row: dict[str, Any]

    @property
    def width(self) -> int:
        """Width of the MLP without a gate."""
        return 0 if self.mlp is None else self.mlp.width


def condense_layer(
    layer: ExpertLayer,
    experts: list[GatedMLP],
    shared: GatedMLP | None,
    gate: Tensor | None,
    data: LayerData,
    act: Callable[[Tensor], Tensor],
    recipe: Recipe,
    after: Callable[[Tensor], Tensor] = lambda h: h,
) -> Condensed:
    """Make the dense form of one layer.

    Args:
        layer: the layer.
        experts: its E experts.
        shared: its shared MLP, if there is one.
        gate: the row [1, H] of the shared MLP's sigmoid gate, if there is one.
        data: its calibration tokens.
        act: the activation.
        recipe: how.
        after: see `greedy_divergence`.

    Raises:
        RunError: an output isn't finite.
    """
    keeps = gate is not None and recipe.shared_gate == "keep"
    statistics = measure_experts(
        layer, experts, shared, data, act, held_share=recipe.held_share, gated=keeps
    )
    if not bool(statistics.fit.gram.isfinite().all()):
        raise RunError(
            f"an expert of `{layer.name}` returns values that aren't finite",
            "the model overflows in its dtype: try `--dtype float32`",
        )
    if recipe.mode != "dense":
        return Condensed(layer, None, None, None, _fewer_row(layer, statistics, recipe))
    fixed = None
    if keeps:
        fixed = torch.zeros(layer.count + 1, dtype=torch.float64)
        fixed[SHARED] = layer.share
    kept, constants = _chosen(layer, experts, shared, data, act, statistics, recipe, fixed, after)
    merged = _merged(layer, experts, None if keeps else shared, data, kept, constants)
    row = _row(layer, statistics, kept, constants, recipe, fixed, merged)
    if recipe.refit and merged is not None:
        merged = _refitted(merged, shared if keeps else None, data, act, recipe, layer, row)
    return Condensed(layer, merged, shared if keeps else None, gate if keeps else None, row)


def _fewer_row(layer: ExpertLayer, statistics: ExpertStatistics, recipe: Recipe) -> dict[str, Any]:
    """Return the row of a layer that keeps its router and fewer experts."""
    row: dict[str, Any] = {
        "module": layer.name,
        "kind": PRUNE if recipe.mode == "prune" else MERGE,
        "layer": layer.index,
        "width": layer.width,
        "usage": _usage(statistics),
        "dead": [e for e in range(layer.count) if statistics.count[e] == 0],
        "tokens": statistics.tokens,
    }
    if recipe.mode == "prune":
        kept = kept_experts(statistics, recipe.score, recipe.experts, recipe.groups)
        return {**row, "experts": kept}
    found = clusters(statistics.center, statistics.count, recipe.experts)
    shares = []
    for group in found:
        used = statistics.count[group].clamp(min=1e-9)
        shares.append((used / used.sum()).tolist())
    return {**row, "experts": [g[0] for g in found], "clusters": found, "shares": shares}


def _usage(statistics: ExpertStatistics) -> list[float]:
    return [round(v, 6) for v in (statistics.count / statistics.tokens).tolist()]


def _chosen(
    layer: ExpertLayer,
    experts: list[GatedMLP],
    shared: GatedMLP | None,
    data: LayerData,
    act: Callable[[Tensor], Tensor],
    statistics: ExpertStatistics,
    recipe: Recipe,
    fixed: Tensor | None,
    after: Callable[[Tensor], Tensor],
) -> tuple[list[int], Tensor]:
    """Return the experts that a layer keeps, and the constants [E + 1]."""
    if layer.name in recipe.given:
        kept, values = recipe.given[layer.name]
        constants = torch.zeros(layer.count + 1, dtype=torch.float64)
        constants[[SHARED, *(e + 1 for e in kept)]] = torch.tensor(values, dtype=torch.float64)
        return kept, constants
    options: dict[str, Any] = {
        "shared": shared is not None,
        "share": layer.share,
        "scales_input": layer.scales_input,
        "fixed": fixed,
    }
    if recipe.score == "greedy-ls":
        kept = greedy_least_squares(statistics.fit, recipe.experts, shared is not None, fixed)
    elif recipe.score == "random":
        order = permutation(recipe.seed, layer.index, layer.count)
        kept = sorted(int(e) for e in order[: recipe.experts])
    elif recipe.score == "greedy-js":
        mean = constants_of(statistics, list(range(layer.count)), how="conditional-mean", **options)
        kept = greedy_divergence(layer, experts, shared, data, act, mean, recipe.experts, after)
    else:
        kept = by_score(statistics, recipe.score, recipe.experts)
    return kept, constants_of(statistics, kept, how=recipe.weights, **options).cpu()


def _merged(
    layer: ExpertLayer,
    experts: list[GatedMLP],
    shared: GatedMLP | None,
    data: LayerData,
    kept: list[int],
    constants: Tensor,
) -> GatedMLP | None:
    """Return the kept MLPs as one, in float32."""
    scales = input_scales(layer, data)
    parts = [] if shared is None else [GatedMLP(*(t.float() for t in shared))]
    factors = [] if shared is None else [float(constants[SHARED])]
    for number in kept:
        gate, up, down = (t.float() for t in experts[number])
        if scales is not None:
            gate, up = gate * scales[number], up * scales[number]
        parts.append(GatedMLP(gate, up, down))
        factors.append(float(constants[number + 1]))
    if not parts:
        return None
    gates, ups, downs = zip(*parts, strict=True)
    return merge_experts(gates, ups, downs, factors)


def _refitted(
    merged: GatedMLP,
    gated: GatedMLP | None,
    data: LayerData,
    act: Callable[[Tensor], Tensor],
    recipe: Recipe,
    layer: ExpertLayer,
    row: dict[str, Any],
) -> GatedMLP:
    """Return the MLP with a refitted down projection, and note how that went in the row."""
    target = data.outputs
    if gated is not None and data.gate is not None:
        target = torch.cat(
            [
                data.outputs[rows].float()
                - layer.share * data.gate[rows, None] * apply_mlp(gated, data.inputs[rows], act)
                for rows in tiles(len(data.inputs), _TILE)
            ]
        )
    fit, held = data._replace(outputs=target).split(recipe.held_share)
    wide = GatedMLP(*(t.to(data.inputs.dtype) for t in merged))
    found = ridge_refit(
        normal_equations(wide, fit, act), normal_equations(wide, held, act), merged.down,
        recipe.ridges,
    )  # fmt: skip
    ridge = found.ridge
    row["ridge"] = ridge if ridge != float("inf") else "none"
    row["errors"]["refit"] = found.held_error * _energy_ratio(target, data, recipe)
    if found.note:
        row["note"] = found.note
    return merged._replace(down=found.down)


def _energy_ratio(target: Tensor, data: LayerData, recipe: Recipe) -> float:
    """Errors are relative to what the whole layer returned, also where a part of it is kept."""
    if target is data.outputs:
        return 1.0
    cut = len(target) - max(1, round(recipe.held_share * len(target)))
    own, whole = target[cut:].double().square().sum(), data.outputs[cut:].double().square().sum()
    return float(own / whole)


def _row(
    layer: ExpertLayer,
    statistics: ExpertStatistics,
    kept: list[int],
    constants: Tensor,
    recipe: Recipe,
    fixed: Tensor | None,
    merged: GatedMLP | None,
) -> dict[str, Any]:
    """Return a layer's row of the plan, with the held-out errors of both kinds of constants."""
    options: dict[str, Any] = {
        "shared": layer.shared is not None,
        "share": layer.share,
        "scales_input": layer.scales_input,
        "fixed": fixed,
    }
    errors = {
        name: statistics.held.error(constants_of(statistics, kept, how=how, **options))
        for name, how in (("constants", "conditional-mean"), ("least_squares", "least-squares"))
    }
    keeps = fixed is not None
    return {
        "module": layer.name,
        "kind": "gated_dense_mlp" if keeps else "dense_mlp",
        "width": 0 if merged is None else merged.width,
        **({"shared": layer.shared_width} if keeps else {}),
        "layer": layer.index,
        "experts": kept,
        "constants": [float(constants[i]) for i in [SHARED, *(e + 1 for e in kept)]],
        "errors": errors,
        "usage": _usage(statistics),
        "dead": [e for e in range(layer.count) if statistics.count[e] == 0],
        "tokens": statistics.tokens,
    }
