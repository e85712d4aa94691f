"""Train the shipped tiny Qwen2-MoE on the corpus of generate.py; two CPU cores are enough.

    python calib_data/train_tiny_moe.py --output DIR --log log.jsonl --minutes 45

Four layers of eight experts, two of them a token, beside a gated shared expert, trained as the tiny
Llama is (train_tiny_llama.py); each expert's matrices are made orthogonal by themselves, routers
are trained by AdamW. The balancing loss is strong, so that no expert dies.
"""

from __future__ import annotations

import torch
from train_tiny_llama import CONTEXT, main
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM


def make_moe(seed: int, vocabulary: int) -> Qwen2MoeForCausalLM:
    """About 1.8 million parameters, 1.1 million of them in use for a token, embeddings tied."""
    torch.manual_seed(seed)
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=320,
            moe_intermediate_size=96,
            shared_expert_intermediate_size=128,
            num_experts=8,
            num_experts_per_tok=2,
            router_aux_loss_coef=0.05,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
    )


if __name__ == "__main__":
    main(make_moe, __doc__ or "")
