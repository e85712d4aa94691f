"""Tiny random checkpoints of many families, with a character tokenizer, for the whole test suite.

`ARCHITECTURES` are the twelve families that every command is tested on; `MORE_ARCHITECTURES` are
further ones on which anatomy (and whoever else wants to) is tried. Weights are drawn wide enough
that logits vary, and biases and norm weights are moved off their zeros and ones, so that a test
notices when one of them is lost. On disk every checkpoint has the names that stock
`save_pretrained` writes.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 128
BLOCKS = 4
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
CHARACTERS = ["Ġ", *(chr(code) for code in range(33, 127)), "Ċ", "ĉ"]  # space, newline, tab
HEAD = {  # of the families whose class is not called …ForCausalLM
    "gpt2": "GPT2LMHeadModel",
    "bert": "BertForMaskedLM",
    "modernbert": "ModernBertForMaskedLM",
    "t5": "T5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
    "vit": "ViTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "llama4": "Llama4ForCausalLM",
}

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_MOE = {**_GROUPED, "num_experts_per_tok": 2}


def _config(kind: str, base: dict, **own: object) -> Callable[[], PretrainedConfig]:
    """Return a maker of `kind`'s config; an option of `own` that is None is taken out of `base`."""
    options = {key: value for key, value in {**base, **own}.items() if value is not None}
    return lambda: getattr(transformers, f"{kind}Config")(**options)


_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": BLOCKS,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}

ARCHITECTURES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": _config("Llama", _GROUPED, tie_word_embeddings=False),
    "mistral": _config("Mistral", _GROUPED, sliding_window=16, tie_word_embeddings=False),
    "qwen2": _config(
        "Qwen2",
        _GROUPED,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=2,
        tie_word_embeddings=False,
    ),
    "qwen3": _config("Qwen3", _GROUPED, head_dim=16, tie_word_embeddings=True),
    "gemma2": _config(
        "Gemma2",
        _GROUPED,
        head_dim=8,
        sliding_window=8,
        query_pre_attn_scalar=8,
        num_hidden_layers=4,
    ),
    "phi": _config("Phi", _COMMON, tie_word_embeddings=False),
    "gpt2": _config("GPT2", _GPT2),
    "gpt_neox": _config("GPTNeoX", _COMMON, tie_word_embeddings=False),
    "opt": _config(
        "OPT", _COMMON, intermediate_size=None, ffn_dim=48, word_embed_proj_dim=32, init_std=0.2
    ),
    "qwen2_moe": _config(
        "Qwen2Moe",
        _MOE,
        num_experts=4,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
        tie_word_embeddings=False,
    ),
    "mixtral": _config("Mixtral", _MOE, num_local_experts=4, tie_word_embeddings=False),
    "bert": _config("Bert", _COMMON, type_vocab_size=2),
}


_EXPERTS = {"num_local_experts": 4, "tie_word_embeddings": False}
_MLA = {"kv_lora_rank": 16, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8}
_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
    "initializer_range": 0.2,
}
_BLOOM = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "n_layer": BLOCKS,
    "n_head": 4,
    "initializer_range": 0.2,
    "pad_token_id": 3,
}

MORE_ARCHITECTURES: dict[str, Callable[[], PretrainedConfig]] = {
    "phi3": _config("Phi3", _GROUPED, tie_word_embeddings=False),
    "stablelm": _config("StableLm", _GROUPED, tie_word_embeddings=False),
    "olmo": _config("Olmo", _GROUPED),
    "olmo2": _config("Olmo2", _GROUPED),
    "glm": _config("Glm", _GROUPED, head_dim=8),
    "starcoder2": _config("Starcoder2", _GROUPED),
    "gemma3": _config("Gemma3Text", _GROUPED, head_dim=8, sliding_window=8),
    "gptj": _config("GPTJ", _GPT2, rotary_dim=4),
    "gpt_bigcode": _config("GPTBigCode", _GPT2),
    "falcon": _config(
        "Falcon",
        {**_BLOOM, "n_layer": None, "n_head": None},
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
    ),
    "bloom": _config("Bloom", _BLOOM),
    "mpt": _config("Mpt", {}, d_model=32, n_heads=4, n_layers=BLOCKS, vocab_size=VOCABULARY),
    "qwen3_moe": _config("Qwen3Moe", _MOE, num_experts=4, moe_intermediate_size=24, head_dim=8),
    "granitemoe": _config("GraniteMoe", _MOE, **_EXPERTS),
    "gpt_oss": _config("GptOss", _MOE, **_EXPERTS, head_dim=8, sliding_window=8),
    "llama4": _config(
        "Llama4Text", _MOE, **_EXPERTS, head_dim=8, intermediate_size_mlp=40, attention_chunk_size=8
    ),
    "deepseek_v3": _config(
        "DeepseekV3",
        {**_MOE, **_MLA},
        v_head_dim=8,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=24,
        first_k_dense_replace=1,
        num_key_value_heads=4,
    ),
    "jetmoe": _config("JetMoe", _MOE, **_EXPERTS, kv_channels=8, num_attention_heads=None),
    "mamba": _config(
        "Mamba", {}, vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=BLOCKS, state_size=4
    ),
    "jamba": _config(
        "Jamba",
        _MOE,
        num_experts=4,
        use_mamba_kernels=False,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
    ),
    "modernbert": _config(
        "ModernBert",
        _COMMON,
        local_attention=8,
        global_attn_every_n_layers=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "t5": _config(
        "T5",
        {},
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=BLOCKS,
        num_heads=4,
        decoder_start_token_id=3,
        feed_forward_proj="gated-gelu",
    ),
    "bart": _config(
        "Bart",
        {},
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=BLOCKS,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=40,
        max_position_embeddings=128,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    ),
    "vit": _config("ViT", _VISION),
    "dinov2": _config("Dinov2", _VISION),
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are single printable ASCII characters, ids below 128.

    It is a byte-level BPE without merges, since transformers gives some families (qwen2) a
    byte-level pre-tokenizer whatever tokenizer.json says.
    """
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def fill(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Move every 1-D parameter (biases, norm weights) off its default, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def build(arch: str, *, seed: int = 0) -> PreTrainedModel:
    """Return the float32 model of `arch` with random weights, in eval mode."""
    config = {**ARCHITECTURES, **MORE_ARCHITECTURES}[arch]()
    family = type(config).__name__.removesuffix("Config").removesuffix("Text")
    head = HEAD.get(arch, f"{family}ForCausalLM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, head)(config)
    return fill(model, seed).eval()


def make_checkpoint(
    arch: str,
    directory: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    tokenizer: bool = True,
) -> Path:
    """Save a random `arch` model under `directory` as stock `save_pretrained` does.

    Returns:
        `directory` as a Path.
    """
    model = build(arch, seed=seed).to(dtype)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    if tokenizer:
        tiny_tokenizer().save_pretrained(directory)
    return Path(directory)


def make_batch(rows: int = 2, length: int = 24, *, seed: int = 0, padded: bool = False) -> dict:
    """Return `input_ids` [rows, length] (and, padded, a left-padded `attention_mask`)."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 100, (rows, length), generator=generator)
    if not padded:
        return {"input_ids": tokens}
    mask = torch.ones_like(tokens)
    for row in range(1, rows):
        mask[row, : 2 + row] = 0
    return {"input_ids": tokens.where(mask.bool(), torch.tensor(3)), "attention_mask": mask}
