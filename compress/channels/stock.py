"""A cut network as a stock checkpoint, where its family's own config can spell its widths.

A candidate config is made from the first widths found and believed only if the stock class, built
from it, has just the tensors that the cut network has.
"""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from compress.channels.attention import attentions
from compress.checkpoints.record import config_of, forget

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_stock(model: PreTrainedModel) -> bool:
    """Turn a cut network into a stock one in place, if its config can say what it is.

    Where heads are thinner, sqrt(d / d_before) goes into the queries, since stock code derives the
    scale of the products from the head's length (exact up to one rounding).

    Returns:
        Whether that was done; else the model is as it was.
    """
    if not _only_sizes(model):
        return False
    config = _candidate(model)
    if config is None or not _builds(model, config):
        return False
    for _, module in attentions(model):
        scale = module.head_dim**-0.5
        if module.scaling != scale:
            factor = module.scaling / scale
            with torch.no_grad():
                for parameter in module.q_proj.parameters():
                    parameter.mul_(factor)
            module.scaling = scale
    forget(model)
    for name, value in config.to_dict().items():
        if name in _FIELDS and getattr(model.config, name, None) != value:
            setattr(model.config, name, value)
    return True


_FIELDS = (
    *("intermediate_size", "num_attention_heads", "head_dim", "hidden_size", "mlp_ratio"),
    *("embedding_size", "hidden_sizes"),
)


def _only_sizes(model: PreTrainedModel) -> bool:
    """Whether all edits are of sizes, which the tensors' shapes then show."""
    config = config_of(model)
    return config is not None and all(
        fields["kind"] in ("attention", "columns", "conv", "linear", "norm")
        and not {"kernel", "stride"} & set(fields)
        for fields in config.modules.values()
    )


def _candidate(model: Any) -> Any:
    """Return a config with the widths found, without edits; None for families that have no way."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    kind = config.model_type
    if kind in ("vit", "deit", "beit", "dinov2"):
        _transformer(model, config)
    elif kind == "swin":
        _set_mlp(model, config)
    elif kind in ("resnet", "regnet", "convnext", "convnextv2"):
        _stages(model, config)
    else:
        return None
    return config


def _transformer(model: nn.Module, config: Any) -> None:
    _, module = next(attentions(model))
    config.num_attention_heads = module.q_proj.out_features // module.head_dim
    config.head_dim = module.head_dim
    config.hidden_size = module.q_proj.in_features
    _set_mlp(model, config)


def _set_mlp(model: nn.Module, config: Any) -> None:
    first: Any = next((m for n, m in model.named_modules() if n.endswith(".fc1")), None)
    if first is None:
        return
    if hasattr(config, "mlp_ratio"):  # int(ratio · width) is what stock code makes of it
        ratio = first.out_features / first.in_features
        with contextlib.suppress(StrictDataclassError):  # some configs take whole numbers only
            config.mlp_ratio = int(ratio) if ratio == int(ratio) else ratio + 1e-6
    else:
        config.intermediate_size = first.out_features


def _stages(model: Any, config: Any) -> None:
    """Read the widths of the stem and of each stage's last writer."""
    base = model.base_model
    widths = []
    for stage in base.encoder.stages:
        found = [m for m in stage.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        widths.append(getattr(found[-1], "out_channels", getattr(found[-1], "out_features", 0)))
    config.hidden_sizes = widths
    if hasattr(config, "embedding_size"):
        config.embedding_size = base.embedder.embedder.convolution.out_channels


def _builds(model: PreTrainedModel, config: Any) -> bool:
    """Whether the stock class makes just these tensors of a config."""
    kind: Any = type(model)
    try:
        with torch.device("meta"):
            plain = kind._from_config(config)
    except (ValueError, RuntimeError, TypeError, ZeroDivisionError):
        return False
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    return shapes == {key: value.shape for key, value in model.state_dict().items()}
