"""Families whose own config can spell a dense layer among expert layers.

A condensed layer then is the family's ordinary MLP, and anyone loads the checkpoint. All dense
layers of a model share one width there: narrower ones are padded with zero rows and columns, which
changes nothing but the size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Spelling = Callable[[Any, set[int]], dict[str, Any] | None]
"""(text config, numbers of the layers that are to be dense) -> fields of config.json, or None where
the family can't say it."""


@dataclass(frozen=True)
class Form:
    """How a family spells dense layers.

    Attributes:
        width: the config's field for the width of dense layers.
        spell: the fields that make exactly some layers dense.
        parts: the dense MLP's names for gate, up and down.
        where: which layers it can spell, for the reader.
    """

    width: str
    spell: Spelling
    where: str = "any layer"
    parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")


def _mlp_only(config: Any, dense: set[int]) -> dict[str, Any]:
    return {"mlp_only_layers": sorted(dense | set(config.mlp_only_layers or ()))}


def _layer_types(config: Any, dense: set[int]) -> dict[str, Any]:
    kinds = list(config.mlp_layer_types)
    return {"mlp_layer_types": ["dense" if i in dense else k for i, k in enumerate(kinds)]}


def _moe_layers(config: Any, dense: set[int]) -> dict[str, Any]:
    return {"moe_layers": [i for i in range(config.num_hidden_layers) if i not in dense]}


def _prefix(name: str) -> Spelling:
    def spell(config: Any, dense: set[int]) -> dict[str, Any] | None:
        return {name: len(dense)} if dense == set(range(len(dense))) else None

    return spell


def _span(config: Any, dense: set[int]) -> dict[str, Any] | None:
    """ernie4_5_moe: experts in every n-th layer of a span."""
    total, step = config.num_hidden_layers, config.moe_layer_interval
    sparse = [i for i in range(total) if i not in dense]
    first, last = (sparse[0], sparse[-1]) if sparse else (total, total)
    said = [i for i in range(total) if (i + 1) % step == 0 and first <= i <= last]
    return {"moe_layer_start_index": first, "moe_layer_end_index": last} if said == sparse else None


def _no_experts(config: Any, dense: set[int]) -> dict[str, Any] | None:
    """jamba: one expert means none, in every layer."""
    return {"num_experts": 1} if len(dense) == config.num_hidden_layers else None


_ANY = Form("intermediate_size", _mlp_only)
_TYPES = Form("intermediate_size", _layer_types)
_FIRST = Form("intermediate_size", _prefix("first_k_dense_replace"), "a prefix of the layers")

FORMS: Mapping[str, Form] = {
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_vl_moe_text"), _ANY),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "deepseek_v32", "exaone_moe"), _TYPES),
    **dict.fromkeys(("bailing_hybrid", "deepseek_ocr2_text"), _TYPES),
    "cohere2_moe": Form("prefix_dense_intermediate_size", _layer_types),
    "llama4_text": Form("intermediate_size_mlp", _moe_layers),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe", "dots1"), _FIRST),
    "afmoe": Form("intermediate_size", _prefix("num_dense_layers"), "a prefix of the layers"),
    "lfm2_moe": Form(
        "intermediate_size",
        _prefix("num_dense_layers"),
        "a prefix of the layers",
        ("w1", "w3", "w2"),
    ),
    "ernie4_5_moe": Form("intermediate_size", _span, "layers outside one span"),
    "jamba": Form("intermediate_size", _no_experts, "all layers"),
}


@dataclass(frozen=True)
class OneExpert:
    """How a family whose layers all have experts is given one, which every token is routed to.

    The router's weight is 0 and the one expert's routing weight 1: a softmax over one, or a
    sigmoid over its own sum. A shared MLP, where the family has one, takes a part of the neurons.

    Attributes:
        fields: of the config, that become 1.
        width: the config's field for the width of experts.
        shared: how wide the shared MLP is: "own", as it was, behind a sigmoid gate, whose weight
            becomes 0 and its value 1/2 unless it is kept; "same", as the expert; "" there is none.
    """

    fields: tuple[str, str]
    width: str
    shared: str = ""


_LOCAL = OneExpert(("num_local_experts", "num_experts_per_tok"), "intermediate_size")
_PLAIN = OneExpert(("num_experts", "num_experts_per_tok"), "intermediate_size")
_GATED = OneExpert(("num_experts", "num_experts_per_tok"), "moe_intermediate_size", "own")

ONE_EXPERT: Mapping[str, OneExpert] = {
    **dict.fromkeys(
        (
            "mixtral",
            "minimax",
            "minimax_m2",
            "granitemoe",
            "granitemoeshared",
            "granitemoehybrid",
            "granitemoe_swa",
        ),
        _LOCAL,
    ),
    **dict.fromkeys(("olmoe", "flex_olmo"), _PLAIN),
    "hunyuan_v1_moe": OneExpert(("num_experts", "moe_topk"), "intermediate_size", "same"),
    **dict.fromkeys(("qwen2_moe", "qwen3_next", "qwen3_5_moe_text"), _GATED),
}
"""Families that can be stored so when all expert layers are condensed (cohere and llama have dense
layers; group-limited routers fail on one expert; phimoe always takes two)."""


def form_of(config: Any) -> Form | None:
    """Return how a text config's family spells dense layers; None where it can't."""
    return FORMS.get(getattr(config, "model_type", ""))


def one_expert_of(config: Any) -> OneExpert | None:
    """Return how a text config's family is given one expert a layer; None where it can't."""
    return ONE_EXPERT.get(getattr(config, "model_type", ""))


def fields_of(config: Any, form: Form, dense: set[int], width: int) -> dict[str, Any] | None:
    """Return the fields of config.json that make exactly these layers dense; None if none do.

    Args:
        config: the text config.
        form: of its family.
        dense: numbers of all layers that are to be dense, those that are so already included.
        width: their width.
    """
    fields = form.spell(config, dense)
    if fields is None:
        return None
    fields[form.width] = width
    if len(dense) == config.num_hidden_layers:  # without experts the router's loss fails
        for name, value in (("output_router_logits", False), ("router_aux_loss_coef", 0.0)):
            if hasattr(config, name):
                fields[name] = value
    return fields
