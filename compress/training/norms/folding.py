"""LayerNorm Scaling as a stock checkpoint: the factors lie in the norms' weights and biases."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel

from compress.checkpoints import edits
from compress.checkpoints.edits.scaled_norm import fold, is_scaled
from compress.checkpoints.record import config_of, forget, record

_FOLDED = "compress_folded_norms"
"""A field of config.json that stock code keeps and ignores: norm -> l of a folded 1 / sqrt(l)."""


def fold_scaled_norms(model: PreTrainedModel) -> list[str]:
    """Fold every scaled norm's factor into its weight and bias, in place.

    The model computes the same up to one rounding, and saves as a stock checkpoint unless it has
    other edits. Its config remembers the factors, so that training can go on from the explicit
    scale (`place_norms`). Sharded weights do as well, if every process calls this.

    Args:
        model: with scaled norms; one without is left alone.

    Returns:
        The norms that can't hold a factor, since they have no weight: they stay edits.
    """
    config = config_of(model)
    scaled: dict[str, Any] = {n: m for n, m in model.named_modules() if is_scaled(m)}
    if config is None or not scaled:
        return []
    depths = {name: norm.depth for name, norm in scaled.items()}
    kept = [name for name, norm in scaled.items() if not fold(norm)]
    folded = {name: depth for name, depth in depths.items() if name not in kept}
    spellings = {here for name in folded for here in edits.spellings(model, name)}
    config.modules = {n: f for n, f in config.modules.items() if n not in spellings}
    if config.modules:
        record(model, config.modules)
    else:
        forget(model)
    setattr(model.config, _FOLDED, folded)
    return kept


def unfold_scaled_norms(model: PreTrainedModel, wanted: dict[str, edits.Fields]) -> bool:
    """Take folded factors out of the weights again, before the norms are scaled by edits.

    Args:
        model: stock, in memory.
        wanted: the edits of kind scaled_norm that the caller is about to make.

    Returns:
        Whether the model's config told of folded factors, and they are those wanted.
    """
    told: dict[str, int] = getattr(model.config, _FOLDED, None) or {}
    names = edits.resolve(model, told, foreign_heads=True)
    here = {names[name]: depth for name, depth in told.items() if name in names}
    if not here or here != {name: fields["depth"] for name, fields in wanted.items()}:
        return False
    edits.apply(model, wanted)
    for norm in _norms(model, here):
        fold(norm, back=True)
    delattr(model.config, _FOLDED)
    return True


def _norms(model: PreTrainedModel, names: Iterable[str]) -> list[Any]:
    return [model.get_submodule(name) for name in names]
