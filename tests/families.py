"""Tiny random configs of every model family that the walk was measured on, one line each.

A config is the family's default one, made small by `SMALL` (whichever of its names the family
has) and then by the family's own options. Sub-configs (text, vision) are made small alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tiny_models import fill

VOCABULARY = 64
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(["pad_token_id", "decoder_start_token_id"], 3),
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "cls_token_id": 1,
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "emb_dim"], 32),
    **dict.fromkeys(["embedding_size", "d_embedding"], 16),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 2),
    **dict.fromkeys(["encoder_layers", "decoder_layers", "num_decoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads"], 4),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads"], 2),
    **dict.fromkeys(["head_dim", "d_kv", "d_head", "attention_head_dim"], 8),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "d_inner"], 48),
    **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"], 48),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 24),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_k", "top_k"], 2),
    **dict.fromkeys(["max_position_embeddings", "n_positions"], 64),
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "type_vocab_size": 2,
    "image_size": 32,
    "patch_size": 8,
    **dict.fromkeys(["initializer_range", "init_std"], 0.2),
}


class Family(NamedTuple):
    """How a model type is made small and what it is given.

    Attributes:
        options: beside those of SMALL; one that is None is taken out; a dict is for a sub-config.
        inputs: a key of INPUTS.
    """

    options: dict[str, Any]
    inputs: str = "text"


def _kinds(inputs: str, names: str, **options: Any) -> dict[str, Family]:
    return {name: Family(options, inputs) for name in names.split()}


_MLA = {"kv_lora_rank": 16, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8}
_MLA |= {"v_head_dim": 8, "num_key_value_heads": 4, "head_dim": 4}
_SSM = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
_DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
_DELTA |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
_STAGES = {"depths": [1, 2], "hidden_sizes": [16, 32]}
_SEGMENTS = {**_STAGES, "num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2]}
_SEGMENTS |= {"num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
_WINDOWS = {"depths": [1, 2], "num_heads": [2, 4], "embed_dim": 16, "window_size": 4}
_WINDOWS |= {"patch_size": 4, "num_layers": None}
_CONVOLUTIONS = {"conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3]}
_CONVOLUTIONS |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8}
_CONVOLUTIONS |= {"num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16}
_CONVOLUTIONS |= {"tdnn_dim": [16], "tdnn_kernel": [3], "tdnn_dilation": [1]}
_CONVOLUTIONS |= {"codevector_dim": 16, "proj_codevector_dim": 16}
_TOWER = {"num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 4}
_LOOK = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_position_embeddings": 16}
_IDS = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62}
_IDS |= {"vision_end_token_id": 63}

FAMILIES: dict[str, Family] = {
    # Plain decoders.
    **_kinds(
        "text",
        "llama mistral ministral ministral3 qwen3 phi phi3 olmo olmo2 stablelm starcoder2 granite "
        "smollm3 glm glm4 cohere nemotron helium seed_oss arcee apertus ernie4_5 "
        "hunyuan_v1_dense gemma opt xglm biogpt persimmon",
    ),
    # Masks that differ by layer.
    **_kinds("text", "qwen2 olmo3 exaone4 cohere2 gemma2 gemma3_text vaultgemma gpt_oss"),
    **_kinds("text", "llama4_text", intermediate_size_mlp=40, interleave_moe_layer_step=2),
    **_kinds("text", "gemma4_text", hidden_size_per_layer_input=8, vocab_size_per_layer_input=64),
    **_kinds(
        "text",
        "gemma3n_text",
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=64,
        laurel_rank=4,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
    ),
    # Conv1D, tuples, alibi.
    **_kinds("text", "gpt2 gpt_bigcode gpt_neox bloom falcon mpt"),
    **_kinds("text", "gptj codegen", rotary_dim=4),
    **_kinds("text", "gpt_neo", attention_types=[[["global", "local"], 1]], window_size=8),
    **_kinds("text", "ctrl", dff=48),
    # Experts.
    **_kinds(
        "text",
        "mixtral phimoe qwen2_moe qwen3_moe olmoe flex_olmo ernie4_5_moe hunyuan_v1_moe minimax "
        "minimax_m2 afmoe granitemoe granitemoeshared",
        moe_num_experts=4,
        moe_layer_start_index=0,
        num_dense_layers=1,
        block_size=4,
        shared_intermediate_size=24,
    ),
    **_kinds("text", "glm4_moe dots1", first_k_dense_replace=1, n_shared_experts=1),
    **_kinds(
        "text",
        "deepseek_v2 deepseek_v3 glm4_moe_lite",
        **_MLA,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        n_shared_experts=1,
        mlp_layer_types=["dense", "sparse"],
    ),
    **_kinds(
        "text",
        "deepseek_v4",
        num_key_value_heads=1, q_lora_rank=12, o_lora_rank=12, o_groups=2,
        index_n_heads=2, index_head_dim=8, index_topk=4, hc_mult=2,
        mlp_layer_types=["hash_moe", "moe"], head_dim=16, partial_rotary_factor=0.5,
        compress_rates={"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    ),
    **_kinds("text", "lfm2_moe", layer_types=["conv", "full_attention"], num_dense_layers=1),
    **_kinds(
        "text", "longcat_flash", **_MLA, zero_expert_num=2, moe_topk=3, expert_ffn_hidden_size=24
    ),
    **_kinds("text", "jetmoe", kv_channels=8, num_attention_heads=None),
    **_kinds(
        "text",
        "dbrx",
        attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        ffn_config={"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    ),
    # State spaces and other mixers.
    **_kinds("text", "mamba", state_size=4),
    **_kinds("text", "mamba2", num_heads=8, state_size=8, n_groups=2, chunk_size=8),
    **_kinds("text", "falcon_h1", **_SSM, mamba_d_ssm=64),
    **_kinds("text", "bamba", **_SSM, attn_layer_indices=[1]),
    **_kinds(
        "text",
        "granitemoehybrid",
        **_SSM,
        layer_types=["linear_attention", "full_attention"],
        shared_intermediate_size=24,
    ),
    **_kinds(
        "text",
        "nemotron_h",
        mamba_num_heads=8, mamba_head_dim=8, ssm_state_size=8, n_groups=2,
        chunk_size=8, moe_shared_expert_intermediate_size=24,
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
    ),
    **_kinds("text", "qwen3_next qwen3_5_text qwen3_5_moe_text", **_DELTA),
    **_kinds("text", "olmo_hybrid", **_DELTA, linear_conv_kernel_dim=2),
    **_kinds("text", "lfm2", layer_types=["conv", "full_attention"]),
    **_kinds("text", "recurrent_gemma", lru_width=32, block_types=["recurrent", "attention"]),
    **_kinds(
        "text",
        "kimi_linear",
        **{**_MLA, "q_lora_rank": None},
        linear_head_dim=8, linear_num_heads=4, num_experts_per_token=2,
        mlp_layer_types=["dense", "sparse"],
    ),
    **_kinds("text", "rwkv", attention_hidden_size=32, num_hidden_layers=8),
    **_kinds(
        "text",
        "jamba",
        attn_layer_period=2, attn_layer_offset=1, mamba_dt_rank=4,
        mamba_d_state=4, use_mamba_kernels=False,
    ),
    **_kinds(
        "text",
        "zamba",
        num_hidden_layers=4,
        mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False,
        attention_hidden_size=64, attention_head_dim=16, num_key_value_heads=4,
    ),
    **_kinds(
        "text",
        "zamba2",
        num_hidden_layers=4,
        mamba_d_state=8, chunk_size=8, n_mamba_heads=4, mamba_headdim=16,
        attention_hidden_size=64, attention_head_dim=16, num_key_value_heads=4,
        kv_channels=8, use_mamba_kernels=False, adapter_rank=4,
    ),
    # Encoders.
    **_kinds(
        "text",
        "bert roberta xlm-roberta electra deberta deberta-v2 distilbert mpnet nomic_bert esm "
        "rembert longformer big_bird fnet ibert albert xlm flaubert",
        attention_window=4,
        block_size=4,
        input_embedding_size=16,
        output_embedding_size=16,
        position_embedding_type=None,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
    ),
    **_kinds("text", "modernbert", local_attention=8, global_attn_every_n_layers=2),
    **_kinds("text", "funnel", num_hidden_layers=None, block_sizes=[1, 2], block_repeats=[1, 1]),
    **_kinds(
        "text",
        "squeezebert",
        embedding_size=32,
        q_groups=2, k_groups=2, v_groups=2,
        intermediate_groups=2, output_groups=2,
    ),
    **_kinds("text", "xlnet", max_position_embeddings=None, mem_len=None),
    # Two stacks.
    **_kinds(
        "pair",
        "t5 mt5 bart mbart marian pegasus m2m_100 blenderbot blenderbot-small nllb-moe "
        "switch_transformers",
        encoder_sparse_step=2, decoder_sparse_step=2, expert_capacity=16,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
    ),
    **_kinds(
        "pair",
        "led",
        attention_window=4, max_encoder_position_embeddings=64,
        max_decoder_position_embeddings=64,
    ),
    **_kinds(
        "mel pair", "whisper", num_mel_bins=16, max_source_positions=16, max_target_positions=64
    ),
    # Images.
    **_kinds("image", "vit deit beit dinov2 dinov3_vit ijepa siglip_vision_model"),
    **_kinds(
        "noisy image",
        "vit_mae",
        decoder_hidden_size=16, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=24,
    ),
    **_kinds("image", "swin swinv2", **_WINDOWS),
    **_kinds("image", "resnet regnet", **_STAGES, embedding_size=16, groups_width=8),
    **_kinds("image", "convnext", **_STAGES, num_stages=2, patch_size=4),
    **_kinds("image", "segformer", **_SEGMENTS, sr_ratios=[2, 1]),
    **_kinds(
        "image", "pvt", **_SEGMENTS | {"patch_sizes": [4, 2]}, sequence_reduction_ratios=[2, 1]
    ),
    **_kinds("image", "poolformer", **_SEGMENTS, padding=[2, 1], patch_size=None),
    **_kinds(
        "image",
        "hiera",
        embed_dim=16, depths=[1, 1], num_heads=[1, 2], num_query_pool=1,
        image_size=[32, 32], patch_size=[7, 7], masked_unit_size=[4, 4],
        masked_unit_attention=[True, False],
    ),
    **_kinds("image", "mobilenet_v2", depth_multiplier=0.1, finegrained_output=False),
    **_kinds(
        "image",
        "mobilevit",
        hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 16],
        patch_size=2, aspp_out_channels=8,
    ),
    # Sound.
    **_kinds("sound", "wav2vec2 wav2vec2-conformer hubert wavlm unispeech sew", **_CONVOLUTIONS),
    **_kinds(
        "mel",
        "wav2vec2-bert",
        feature_projection_input_dim=16, conv_depthwise_kernel_size=5,
        tdnn_dim=[16], tdnn_kernel=[3], tdnn_dilation=[1], classifier_proj_size=16,
    ),
    **_kinds(
        "mel",
        "parakeet_ctc",
        encoder_config={"num_mel_bins": 16, "subsampling_conv_channels": 8},
    ),
    # Text and images.
    **_kinds("image text", "clip siglip", projection_dim=16),
    **_kinds(
        "patches",
        "qwen3_vl",
        **_IDS,
        vision_config={**_LOOK, "patch_size": 8, "deepstack_visual_indexes": [0]},
    ),
    **_kinds(
        "patches",
        "qwen3_5 qwen3_5_moe",
        **_IDS,
        text_config=_DELTA,
        vision_config={**_LOOK, "patch_size": 8},
    ),
    **_kinds(
        "text",
        "llama4",
        text_config={"intermediate_size_mlp": 40, "interleave_moe_layer_step": 2},
        vision_config={"vision_output_dim": 32, "projector_input_dim": 32,
                       "projector_output_dim": 32},
    ),
    **_kinds(
        "text",
        "mllama",
        text_config={"cross_attention_layers": [1]},
        vision_config={**_TOWER, "intermediate_layers_indices": [0], "vision_output_dim": 64},
    ),
    **_kinds("text", "gemma3", mm_tokens_per_image=4),
    **_kinds(
        "text",
        "gemma4",
        text_config={"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64},
    ),
}  # fmt: skip

HEADS = (
    *("IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "SEQ_TO_SEQ_CAUSAL_LM", "CAUSAL_LM"),
    *("MASKED_LM", "IMAGE_CLASSIFICATION", "CTC"),
)


def config_of(kind: str, own: dict[str, Any]) -> PretrainedConfig:
    """Return the tiny config of a model type; options that it doesn't know are left out."""
    maker = CONFIG_MAPPING[kind]
    known = {*maker().to_dict(), *maker.attribute_map}
    return _small(maker, {key: value for key, value in own.items() if key in known})


def _small(maker: type[PretrainedConfig], own: dict[str, Any]) -> PretrainedConfig:
    default, names = maker(), maker.attribute_map
    stored = default.to_dict()
    known = {*stored, *names} - {k for k, other in names.items() if other in own}
    options = {**{key: value for key, value in SMALL.items() if key in known}, **own}
    depth = options.get("num_hidden_layers") or 2
    for key in ("layer_types", "layers_block_type", "mlp_layer_types"):
        if key in stored and isinstance(kinds := stored[key], list) and key not in own:
            options[key] = (list(dict.fromkeys(kinds)) * depth)[:depth]
    for key in maker.sub_configs:
        if (sub := getattr(default, key, None)) is not None:
            options[key] = _small(type(sub), own.get(key) or {})
    return maker(**{key: value for key, value in options.items() if value is not None})


def build(kind: str, seed: int = 0) -> PreTrainedModel:
    """Return the tiny float32 model of a family with random weights, in eval mode."""
    family = FAMILIES[kind]
    config = config_of(kind, copy.deepcopy(family.options))
    heads = () if family.inputs == "image text" else HEADS
    found = next(filter(None, (_mapping(head).get(type(config), None) for head in heads)), None)
    maker = found or transformers.MODEL_MAPPING[type(config)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (maker[0] if isinstance(maker, tuple) else maker)(config)
    return fill(model, seed).eval()


def _mapping(head: str) -> Any:
    return getattr(transformers, f"MODEL_FOR_{head}_MAPPING")


def make_batches(kind: str, count: int = 2, rows: int = 2, length: int = 12) -> list[dict]:
    """Return batches of random inputs of the kind that a family takes."""
    draw = torch.Generator().manual_seed(1)

    def tokens() -> Tensor:
        return torch.randint(4, VOCABULARY - 4, (rows, length), generator=draw)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    def patches() -> dict[str, Tensor]:
        ids = tokens()
        ids[:, 2:8] = torch.tensor([62, 60, 60, 60, 60, 63])  # one image of 4 × 4 patches
        grid = torch.tensor([[1, 4, 4]] * rows)
        return {
            "input_ids": ids,
            "mm_token_type_ids": (ids == 60).long(),
            "pixel_values": noise(rows * 16, 3 * 2 * 8 * 8),
            "image_grid_thw": grid,
        }

    makers: dict[str, Callable[[], dict[str, Tensor]]] = {
        "text": lambda: {"input_ids": tokens()},
        "pair": lambda: {"input_ids": tokens(), "decoder_input_ids": tokens()},
        "image": lambda: {"pixel_values": noise(rows, 3, 32, 32)},
        "noisy image": lambda: {
            "pixel_values": noise(rows, 3, 32, 32),
            "noise": torch.rand(rows, 16, generator=draw),
        },
        "sound": lambda: {"input_values": noise(rows, 400)},
        "mel": lambda: {"input_features": noise(rows, 32, 16)},
        "mel pair": lambda: {
            "input_features": noise(rows, 16, 32),
            "decoder_input_ids": tokens(),
        },
        "image text": lambda: {"input_ids": tokens(), "pixel_values": noise(rows, 3, 32, 32)},
        "patches": patches,
    }
    return [makers[FAMILIES[kind].inputs]() for _ in range(count)]
