"""Tiny mixture-of-experts models of many families, and where their experts are."""

import families
import torch

from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.source import open_source
from compress.experts.layers import find_layers

COHERE = {
    "num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24, "hidden_size": 32,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "vocab_size": 128, "num_shared_experts": 1, "prefix_dense_intermediate_size": 40,
    "mlp_layer_types": ["dense", "sparse", "sparse"], "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


def alive(model):
    """Give experts that start as zeros something to say."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "experts" in name and not value.any():
                value.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    return model.eval()


def build(family):
    """Return the tiny model of a family of `families`, or of cohere2_moe(_average)."""
    if not family.startswith("cohere2_moe"):
        return alive(families.build(family))
    from transformers import Cohere2MoeConfig, Cohere2MoeForCausalLM

    strategy = "average" if family.endswith("average") else "sum"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Cohere2MoeConfig(**COHERE, shared_expert_combination_strategy=strategy)
        model = Cohere2MoeForCausalLM(config)
        for value in model.parameters():
            if value.ndim > 1:
                torch.nn.init.normal_(value, 0, 0.2)
    return model.eval()


def layers_of(path):
    """Return the expert layers of a checkpoint."""
    model = skeleton(open_source(path))
    return find_layers(model, read_anatomy(model))
