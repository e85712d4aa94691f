"""Place the norms of a model anew, from a random start or going on from trained weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from compress.checkpoints import edits
from compress.checkpoints.anatomy import Anatomy, Block, read_anatomy
from compress.checkpoints.edits import blocks
from compress.checkpoints.edits.scaled_norm import is_scaled
from compress.errors import RequestError, near_names
from compress.training.norms.finding import check_pre_norm
from compress.training.norms.folding import unfold_scaled_norms
from compress.training.norms.starting import is_depth_scaled, plan_start, start_weights
from compress.training.norms.table import NORMS

DEEP = 24  # layers above which runs with post-norm layers were seen to diverge
LONG = 0.1  # share of the steps that a warm-up should take with post-norm layers
_NAMES = {"post_norm": "post", "branch_norm": "branch-post", "deep_norm": "deepnorm"}
_NAMES |= {"sandwich_norm": "sandwich", "layer_scale": "layerscale"}


@dataclass(frozen=True)
class Placement:
    """How a model's norms stand.

    Attributes:
        norm: the name in NORMS.
        layers: what each layer is, in order: a name in NORMS other than "mix".
        post_fraction: of "mix", else None.
        warnings: plain sentences for the receipt.
    """

    norm: str
    layers: tuple[str, ...]
    post_fraction: float | None = None
    warnings: tuple[str, ...] = ()

    def as_receipt(self) -> dict[str, Any]:
        """The receipt's entry."""
        entry: dict[str, Any] = {"norm": self.norm, "layers": list(self.layers)}
        if self.post_fraction is not None:
            entry["post_fraction"] = self.post_fraction
        return entry


def place_norms(
    model: PreTrainedModel,
    norm: str,
    post_fraction: float = 0.25,
    *,
    fresh: bool = False,
    seed: int = 0,
    warmup: float | None = None,
) -> Placement:
    """Place the norms of a stock model, in place; afterwards it saves and loads as such.

    The layer numbers 1 … floor(post_fraction * L) are post-norm with "mix". LayerNorm Scaling takes
    any model with norms on its layers, the others plain pre-norm layers of known code; every edit
    is kept per layer, so layers may be removed later. A model that stands as asked already is left
    alone. With "lns" a model whose factors were folded gets them back; its function stays.

    Args:
        model: in memory.
        norm: a name in NORMS.
        post_fraction: share of the layers, from 0 to 1; acts with "mix" only.
        fresh: the weights are a random start: draw what DeepNorm and sub-LN want as theirs.
        seed: of that draw.
        warmup: share of the steps that the learning rate rises, to warn of a short one.

    Returns:
        The placement, with warnings.

    Raises:
        RequestError: an unknown name, a fraction outside [0, 1], a layer whose norms can't be
            placed (named), a model with other placements; the model is then as it was.
    """
    if norm not in NORMS:
        raise RequestError(f"unknown placement of norms `{norm}`", near_names(norm, NORMS))
    if not 0.0 <= post_fraction <= 1.0:  # a NaN as well
        raise RequestError(
            f"the share of post-norm layers is {post_fraction:g}, but must be from 0 to 1",
            "such as --post-fraction 0.25",
        )
    anatomy = read_anatomy(model)
    found = placement_of(model)
    warnings = []
    if set(found.layers) == {"pre"}:
        wanted = _edits(model, anatomy, norm, post_fraction)
        warnings = _warnings(model, anatomy, norm, wanted, fresh)
        if norm == "mix" and post_fraction > 0 and not wanted:
            depth = max(len(stack) for stack in anatomy.stacks)
            warnings.append(
                f"mix with {post_fraction:g} of {depth} layers is less than one: all stay pre-norm"
            )
        if norm == "lns" and unfold_scaled_norms(model, wanted):
            warnings = []
        gain = NORMS[norm].gain
        start = plan_start(model, anatomy, gain) if fresh and gain is not None else {}
        edits.apply(model, wanted)
        start_weights(model, start, seed)
    elif found.layers != _layers(anatomy, norm, post_fraction):
        raise RequestError(
            f"the model's norms are placed already, as {_said(found)}",
            "go on without --norm, or with the one it has; start from a stock model for another",
        )
    layers = placement_of(model).layers
    warnings += _warmup(norm, layers, warmup)
    return Placement(norm, layers, post_fraction if norm == "mix" else None, tuple(warnings))


def placement_of(model: PreTrainedModel) -> Placement:
    """Read off a model how its norms stand; `norm` is "mix" where layers differ."""
    layers = tuple(_layer(model, block) for block in read_anatomy(model).blocks)
    kinds = set(layers)
    if kinds == {"peri", "sandwich"}:
        return Placement("peri", layers)
    return Placement(kinds.pop() if len(kinds) == 1 else "mix", layers)


def _layer(model: PreTrainedModel, block: Block) -> str:
    layer: Any = model.get_submodule(block.name)
    kind = blocks.kind_of(layer)
    if kind is not None:
        entry = kind == "sandwich_norm" and layer.normalises_entry
        return "peri" if entry else _NAMES[kind]
    if any(is_scaled(part) for part in layer.modules()):
        return "lns"
    return "sub-ln" if any(_is_normed_input(part) for part in layer.modules()) else "pre"


def _is_normed_input(module: Any) -> bool:
    return isinstance(module, edits.normed_input.NormedInput)


def _edits(
    model: PreTrainedModel, anatomy: Anatomy, norm: str, post_fraction: float
) -> dict[str, edits.Fields]:
    """Return the edits of a placement."""
    wanted: dict[str, edits.Fields] = {}
    if norm != "pre":
        check_pre_norm(model, anatomy)
    for stack in anatomy.stacks:
        depth = len(stack)
        for block in stack[: _changed(depth, norm, post_fraction)]:
            wanted.update(NORMS[norm].edits(model, block, depth))
    return wanted


def _changed(depth: int, norm: str, post_fraction: float) -> int:
    """Return how many layers of a stack, the first ones, a placement changes."""
    # 0.29 * 100 is 28.999…
    return math.floor(post_fraction * depth + 1e-9) if norm == "mix" else depth


def _layers(anatomy: Anatomy, norm: str, post_fraction: float) -> tuple[str, ...]:
    """Return what `placement_of` says of a model once its norms are placed."""
    layers: list[str] = []
    for stack in anatomy.stacks:
        many = _changed(len(stack), norm, post_fraction)
        first, others = {"mix": ("post", "post"), "peri": ("peri", "sandwich")}.get(
            norm, (norm, norm)
        )
        changed = [others if block.index else first for block in stack[:many]]
        layers += [*changed, *("pre" for _ in stack[many:])]
    return tuple(layers)


def _said(placement: Placement) -> str:
    if placement.norm != "mix":
        return placement.norm
    counts = {kind: placement.layers.count(kind) for kind in dict.fromkeys(placement.layers)}
    return ", ".join(f"{count} layers {kind}" for kind, count in counts.items())


def _warnings(
    model: PreTrainedModel, anatomy: Anatomy, norm: str, wanted: dict[str, Any], fresh: bool
) -> list[str]:
    """Say what is known to go wrong with this placement in this model."""
    depth = max(len(stack) for stack in anatomy.stacks)
    said = []
    if NORMS[norm].post and norm != "deepnorm" and wanted and depth > DEEP:
        said.append(
            f"{norm} in {depth} layers: runs of more than {DEEP} with post-norm layers diverged; "
            "the authors take 2 of 32 at 7B (--post-fraction 0.0625)"
        )
    if norm == "lns" and fresh and is_depth_scaled(model, anatomy):
        said.append(
            "LayerNorm Scaling on matrices that start divided by sqrt(2 L) loses its gain: take "
            "--init normal, or a family whose own start isn't scaled (GPT-2's is)"
        )
    if not fresh and wanted:
        said.append(
            f"{norm} on trained weights: the model starts as another function than it was, and "
            "has to be trained back"
        )
    return said


def _warmup(norm: str, layers: tuple[str, ...], warmup: float | None) -> list[str]:
    if not (NORMS[norm].post and set(layers) != {"pre"} and warmup is not None and warmup < LONG):
        return []
    return [f"{norm} with a warm-up of {warmup:.1%} of the steps: below {LONG:.0%} it may diverge"]
