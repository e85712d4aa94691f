"""Train a tiny DeepSeek-V2 for the benchmarks of cd-moe-condense; its weights are not committed.

    python benchmarks/experts/train_deepseek.py --output DIR --log deepseek.jsonl --minutes 20

Four layers of sixteen fine-grained experts, four of them a token, beside an ungated shared expert;
data, optimizers and the loss that spreads tokens over experts are those of the shipped Qwen2-MoE.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2] / "calib_data"))
from train_tiny_llama import CONTEXT, main


def make_deepseek(seed: int, vocabulary: int) -> DeepseekV2ForCausalLM:
    """About 1.9 million parameters, embeddings tied."""
    torch.manual_seed(seed)
    return DeepseekV2ForCausalLM(
        DeepseekV2Config(
            vocab_size=vocabulary,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=320,
            moe_intermediate_size=48,
            n_shared_experts=2,
            n_routed_experts=16,
            num_experts_per_tok=4,
            first_k_dense_replace=0,
            topk_method="greedy",
            n_group=1,
            topk_group=1,
            routed_scaling_factor=1.0,
            router_aux_loss_coef=0.05,  # read by the training script alone
            kv_lora_rank=32,
            q_lora_rank=None,
            qk_rope_head_dim=16,
            qk_nope_head_dim=16,
            v_head_dim=32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
    )


if __name__ == "__main__":
    main(make_deepseek, __doc__ or "")
