"""What an edited model in memory says of itself: its config's list of edits, its conversions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightConverter

from compress.checkpoints import edits, guard, unpacking
from compress.checkpoints.format import METHOD, CompressConfig
from compress.errors import RequestError


def record(model: PreTrainedModel, made: Mapping[str, edits.Fields]) -> None:
    """Write edits that were made into a model's config and weight conversions.

    Args:
        model: the model, edited.
        made: module name in this model -> edit; it takes the place of earlier edits of that module
            and of what lay inside it.
    """
    if not made:
        return
    config = config_of(model) or CompressConfig()
    gone = tuple(
        f"{name}." for name, fields in made.items() if not edits.KINDS[fields["kind"]].in_place
    )
    config.modules = {
        name: fields
        for name, fields in config.modules.items()
        if not any(n in made or n.startswith(gone) for n in edits.spellings(model, name))
    }
    config.modules.update({name: dict(fields) for name, fields in made.items()})
    config.guard = config.guard or guard.guarded(model)
    model.config.quantization_config = config
    if any(fields["kind"] in ("dense_mlp", "gated_dense_mlp") for fields in made.values()):
        _end_router_loss(model)
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:  # not loaded from disk: what its family would reverse at save
        family = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [entry for entry in family if not isinstance(entry, PrefixChange)]
    set_conversions(model, conversions, config)


def forget(model: Any) -> None:
    """Take every mark of edits off a model, so that it saves stock."""
    conversions = getattr(model, "_weight_conversions", None) or []
    model._weight_conversions = [
        entry for entry in unpacking.without_packing(conversions) if not guard.is_guard(entry)
    ]
    for holder, name in (
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model.config, "quantization_config"),
    ):
        if hasattr(holder, name):
            delattr(holder, name)
    model.is_quantized = False
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and hasattr(module.config, "_is_quantized"):
            del module.config._is_quantized


def config_of(model: PreTrainedModel) -> CompressConfig | None:
    """Return the edits that a model's config tells of, None if it is stock.

    Raises:
        RequestError: the model is quantized by another method.
    """
    found = getattr(model.config, "quantization_config", None)
    if found is None or isinstance(found, CompressConfig):
        return found
    fields = found if isinstance(found, dict) else found.to_dict()
    if fields.get("quant_method") != METHOD:
        raise RequestError(
            f"the model is quantized already, by `{fields.get('quant_method')}`",
            "edit the unquantized model, and quantize the result",
        )
    return CompressConfig(**fields)


def load_conversions(model: PreTrainedModel) -> list[WeightConverter]:
    """Return the converters that an edited model's file needs beside its family's; [] if stock."""
    config = config_of(model)
    if config is None:
        return []
    guarding = guard.load_conversions(model, guarded_here(model, config))
    return guarding + unpacking.load_conversions(model, packed_here(model, config))


def guarded_here(model: PreTrainedModel, config: CompressConfig) -> list[str]:
    """Return the guarded parameters that this class holds, as it calls them."""
    return list(edits.resolve(model, config.guard, foreign_heads=True).values())


def packed_here(model: PreTrainedModel, config: CompressConfig) -> list[str]:
    """Return the modules that this class holds and whose zeros aren't stored, as it calls them."""
    packed = [name for name, fields in config.modules.items() if fields["kind"] == "bitmask"]
    return list(edits.resolve(model, packed, foreign_heads=True).values())


def set_conversions(model: Any, conversions: list[Any], config: CompressConfig) -> None:
    """Let the model save its guarded and packed weights as such, beside its other conversions."""
    others = [
        entry for entry in unpacking.without_packing(conversions) if not guard.is_guard(entry)
    ]
    ours = guard.save_conversions(guarded_here(model, config))
    ours += unpacking.save_conversions(model, packed_here(model, config))
    model._weight_conversions = others + ours


def _end_router_loss(model: PreTrainedModel) -> None:
    """Turn the router's loss off once no experts are left: computing it would fail."""
    left = any(getattr(module, "experts", None) is not None for module in model.modules())
    if not left and getattr(model.config, "output_router_logits", False):
        model.config.output_router_logits = False
