"""Tiny models with edits of every kind, for tests of the checkpoint format and of export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers

import tiny_models
from compress.checkpoints import edits


@dataclass(frozen=True)
class Case:
    build: Callable[[], transformers.PreTrainedModel]
    edits: dict[str, dict]
    auto: str = "AutoModelForCausalLM"


def tiny(arch: str, **changes: object) -> Callable[[], transformers.PreTrainedModel]:
    def make():
        config = tiny_models.ARCHITECTURES[arch]()
        config.update(changes)
        return tiny_models.fill(getattr(transformers, HEADS[arch])._from_config(config))

    return make


HEADS = {
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "bert": "BertForMaskedLM",
    "mistral": "MistralForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
}


def own(head: str, config: str, **fields: object) -> Callable[[], transformers.PreTrainedModel]:
    def make():
        return tiny_models.fill(
            getattr(transformers, head)(getattr(transformers, config)(**fields))
        )

    return make


SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
deepseek_v3 = own(
    "DeepseekV3ForCausalLM",
    "DeepseekV3Config",
    **{**SMALL, "num_key_value_heads": 4},
    first_k_dense_replace=1,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    moe_intermediate_size=24,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=8,
)
gpt_oss = own(
    "GptOssForCausalLM",
    "GptOssConfig",
    **SMALL,
    head_dim=8,
    num_local_experts=4,
    num_experts_per_tok=2,
    layer_types=["full_attention"] * 3,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=3,
)
resnet = own(
    "ResNetForImageClassification",
    "ResNetConfig",
    embedding_size=8,
    hidden_sizes=[8, 16],
    depths=[1, 1],
    layer_type="basic",
    num_labels=5,
)
vit = own(
    "ViTForImageClassification",
    "ViTConfig",
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    image_size=16,
    patch_size=4,
    num_labels=5,
)
beit = own(
    "BeitForImageClassification",
    "BeitConfig",
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    image_size=16,
    patch_size=4,
    num_labels=5,
    use_relative_position_bias=True,
)
convnextv2 = own(
    "ConvNextV2ForImageClassification",
    "ConvNextV2Config",
    hidden_sizes=[8, 16],
    depths=[1, 1],
    num_stages=2,
    num_labels=5,
)
conformer = own(
    "Wav2Vec2ConformerForCTC",
    "Wav2Vec2ConformerConfig",
    vocab_size=20,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    conv_dim=[16, 16],
    conv_kernel=[4, 4],
    conv_stride=[4, 4],
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    num_feat_extract_layers=2,
    position_embeddings_type=None,
    conv_depthwise_kernel_size=5,
    layerdrop=0.0,
    apply_spec_augment=False,
)
t5 = own(
    "T5ForConditionalGeneration",
    "T5Config",
    vocab_size=128,
    d_model=32,
    d_kv=8,
    d_ff=48,
    num_layers=2,
    num_heads=4,
)

ATTENTION = "model.layers.{}.self_attn.{}_proj"
MLP = "model.layers.{}.mlp.{}_proj"
LOWRANK = {"kind": "lowrank", "rank": 8}
BITMASK = {"kind": "bitmask"}
RESNET = "resnet.encoder.stages.1.layers.0"

CASES: dict[str, Case] = {
    "lowrank llama": Case(
        tiny("llama", attention_bias=True),
        {ATTENTION.format(0, "q"): LOWRANK, MLP.format(2, "down"): {"kind": "lowrank", "rank": 5}},
    ),
    "lowrank tied": Case(tiny("qwen3"), {MLP.format(1, "up"): LOWRANK}),
    "lowrank gpt2": Case(
        tiny("gpt2"),
        {"transformer.h.0.mlp.c_fc": LOWRANK, "transformer.h.1.attn.c_proj": LOWRANK},
    ),
    "lowrank conformer": Case(
        conformer,
        {
            "wav2vec2_conformer.encoder.layers.0.conv_module.pointwise_conv1": LOWRANK,
            "wav2vec2_conformer.encoder.layers.1.ffn1.intermediate_dense": LOWRANK,
        },
        "AutoModelForCTC",
    ),
    "lowrank bert": Case(
        tiny("bert"),
        {"bert.encoder.layer.0.intermediate.dense": LOWRANK},
        "AutoModelForMaskedLM",
    ),
    "lowrank t5": Case(
        t5,
        {
            "encoder.block.0.layer.1.DenseReluDense.wi": LOWRANK,
            "decoder.block.1.layer.0.SelfAttention.q": LOWRANK,
        },
        "AutoModelForSeq2SeqLM",
    ),
    "linear llama": Case(
        tiny("llama", mlp_bias=True),
        {
            MLP.format(0, "gate"): {"kind": "linear", "out": 40},
            MLP.format(0, "up"): {"kind": "linear", "out": 40},
            MLP.format(0, "down"): {"kind": "linear", "in": 40},
        },
    ),
    "linear gpt2": Case(
        tiny("gpt2"),
        {
            "transformer.h.1.mlp.c_fc": {"kind": "linear", "out": 40},
            "transformer.h.1.mlp.c_proj": {"kind": "linear", "in": 40},
        },
    ),
    "attention vit": Case(
        vit,
        {
            "vit.layers.0.attention": {"kind": "attention", "heads": 3, "head_dim": 4},
            **{
                f"vit.layers.0.attention.{part}": {"kind": "linear", "in": 32, "out": 12}
                for part in ("q_proj", "k_proj", "v_proj")
            },
            "vit.layers.0.attention.o_proj": {"kind": "linear", "in": 12, "out": 32},
        },
        "AutoModelForImageClassification",
    ),
    "columns beit": Case(
        beit,
        {
            "beit.layers.1.attention": {"kind": "attention", "heads": 3, "head_dim": 8},
            **{
                f"beit.layers.1.attention.{part}": {"kind": "linear", "out": 24}
                for part in ("q_proj", "k_proj", "v_proj")
            },
            "beit.layers.1.attention.o_proj": {"kind": "linear", "in": 24},
            "beit.layers.1.relative_position_bias": {"kind": "columns", "width": 3},
        },
        "AutoModelForImageClassification",
    ),
    "response_norm convnextv2": Case(
        convnextv2,
        {
            "convnextv2.encoder.stages.0.layers.0.pwconv1": {"kind": "linear", "out": 20},
            "convnextv2.encoder.stages.0.layers.0.grn": {
                "kind": "response_norm",
                "width": 20,
                "of": 32,
            },
            "convnextv2.encoder.stages.0.layers.0.pwconv2": {"kind": "linear", "in": 20},
        },
        "AutoModelForImageClassification",
    ),
    "linear vit": Case(
        vit,
        {
            "vit.layers.0.mlp.fc1": {"kind": "linear", "out": 24},
            "vit.layers.0.mlp.fc2": {"kind": "linear", "in": 24},
        },
        "AutoModelForImageClassification",
    ),
    "conv, norm, linear resnet": Case(
        resnet,
        {
            f"{RESNET}.layer.0.convolution": {"kind": "conv", "out": 11},
            f"{RESNET}.layer.0.normalization": {"kind": "norm", "width": 11},
            f"{RESNET}.layer.1.convolution": {"kind": "conv", "in": 11, "out": 13},
            f"{RESNET}.layer.1.normalization": {"kind": "norm", "width": 13},
            f"{RESNET}.shortcut.convolution": {"kind": "conv", "in": 8, "out": 13},
            f"{RESNET}.shortcut.normalization": {"kind": "norm", "width": 13},
            "classifier.1": {"kind": "linear", "in": 13},
        },
        "AutoModelForImageClassification",
    ),
    "dense_mlp qwen2_moe": Case(
        tiny("qwen2_moe"), {"model.layers.1.mlp": {"kind": "dense_mlp", "width": 20}}
    ),
    "dense_mlp mixtral": Case(
        tiny("mixtral"), {"model.layers.2.mlp": {"kind": "dense_mlp", "width": 20}}
    ),
    "dense_mlp deepseek_v3": Case(
        deepseek_v3,
        {
            "model.layers.0.mlp": {"kind": "dense_mlp", "width": 30},
            "model.layers.2.mlp": {"kind": "dense_mlp", "width": 20},
        },
    ),
    "dense_mlp gpt_oss": Case(gpt_oss, {"model.layers.1.mlp": {"kind": "dense_mlp", "width": 20}}),
    "post_norm llama": Case(tiny("llama"), {"model.layers.1": {"kind": "post_norm"}}),
    "post_norm qwen2": Case(tiny("qwen2"), {"model.layers.0": {"kind": "post_norm"}}),
    "post_norm mixtral": Case(tiny("mixtral"), {"model.layers.0": {"kind": "post_norm"}}),
    "post_norm gpt2": Case(tiny("gpt2"), {"transformer.h.2": {"kind": "post_norm"}}),
    "branch_norm mistral": Case(tiny("mistral"), {"model.layers.1": {"kind": "branch_norm"}}),
    "deep_norm qwen3": Case(
        tiny("qwen3"), {f"model.layers.{i}": {"kind": "deep_norm", "layers": 4} for i in range(4)}
    ),
    "post_norm gpt_neox": Case(
        tiny("gpt_neox", use_parallel_residual=False), {"gpt_neox.layers.0": {"kind": "post_norm"}}
    ),
    "sandwich_norm gpt2": Case(
        tiny("gpt2"),
        {
            "transformer.h.0": {"kind": "sandwich_norm", "entry": 1},
            "transformer.h.1": {"kind": "sandwich_norm"},
        },
    ),
    "sandwich_norm llama": Case(
        tiny("llama"), {f"model.layers.{i}": {"kind": "sandwich_norm"} for i in range(3)}
    ),
    "layer_scale llama": Case(tiny("llama"), {"model.layers.2": {"kind": "layer_scale"}}),
    "scaled_norm qwen2": Case(
        tiny("qwen2"),
        {
            "model.layers.1.input_layernorm": {"kind": "scaled_norm", "depth": 2},
            "model.layers.2.post_attention_layernorm": {"kind": "scaled_norm", "depth": 3},
        },
    ),
    "scaled_norm gemma2": Case(
        tiny("gemma2"), {"model.layers.1.input_layernorm": {"kind": "scaled_norm", "depth": 2}}
    ),
    "scaled_norm gpt2": Case(
        tiny("gpt2"), {"transformer.h.2.ln_2": {"kind": "scaled_norm", "depth": 3}}
    ),
    "normed_input llama": Case(
        tiny("llama"),
        {
            ATTENTION.format(0, "o"): {"kind": "normed_input"},
            MLP.format(0, "down"): {"kind": "normed_input"},
        },
    ),
    "normed_input gpt2": Case(
        tiny("gpt2"), {"transformer.h.0.attn.c_proj": {"kind": "normed_input"}}
    ),
    "bitmask llama": Case(
        tiny("llama", attention_bias=True),
        {ATTENTION.format(0, "q"): BITMASK, MLP.format(2, "down"): BITMASK},
    ),
    "bitmask tied": Case(tiny("qwen3"), {MLP.format(1, "up"): BITMASK}),
    "bitmask gpt2": Case(
        tiny("gpt2"), {"transformer.h.0.mlp.c_fc": BITMASK, "transformer.h.1.attn.c_proj": BITMASK}
    ),
    "bitmask mixtral": Case(
        tiny("mixtral"),
        {"model.layers.1.mlp.experts": BITMASK, ATTENTION.format(0, "k"): BITMASK},
    ),
    "bitmask qwen2_moe": Case(
        tiny("qwen2_moe"),
        {
            "model.layers.1.mlp.experts": BITMASK,
            "model.layers.1.mlp.shared_expert.up_proj": BITMASK,
        },
    ),
    "bitmask gpt_oss": Case(gpt_oss, {"model.layers.2.mlp.experts": BITMASK}),
    "bitmask vit": Case(vit, {"vit.layers.1.mlp.fc1": BITMASK}, "AutoModelForImageClassification"),
    "bitmask resnet": Case(
        resnet, {f"{RESNET}.layer.0.convolution": BITMASK}, "AutoModelForImageClassification"
    ),
    "bitmask of a lowrank": Case(
        tiny("llama"),
        {ATTENTION.format(0, "q"): LOWRANK, ATTENTION.format(0, "q") + ".up": BITMASK},
    ),
    "expert_list mixtral": Case(
        tiny("mixtral"),
        {
            "model.layers.1.mlp.experts": {"kind": "expert_list"},
            "model.layers.1.mlp.experts.2.up_linear": LOWRANK,
            "model.layers.1.mlp.experts.0.gate_linear": {"kind": "lowrank", "rank": 4},
            "model.layers.1.mlp.experts.0.up_linear": {
                "kind": "lowrank_up",
                "rank": 4,
                "down": "gate_linear",
            },
        },
    ),
    "expert_list gpt_oss": Case(
        gpt_oss,
        {
            "model.layers.2.mlp.experts": {"kind": "expert_list"},
            "model.layers.2.mlp.experts.3.down_linear": LOWRANK,
        },
    ),
    "several llama": Case(
        tiny("llama"),
        {
            "model.layers.1": {"kind": "post_norm"},
            "model.layers.1.mlp": {"kind": "dense_mlp", "width": 33},
            "model.layers.1.mlp.up_proj": LOWRANK,
        },
    ),
}


def make(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """The edited model in memory, every new parameter and statistic drawn at random."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CASES[name].build().eval()
        edits.apply(model, CASES[name].edits)
        fill(model, CASES[name].edits)
    return model


def fill(model: transformers.PreTrainedModel, edited: dict[str, dict]) -> None:
    with torch.no_grad():
        for name in edited:
            module = model.get_submodule(name)
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
                if edited[name]["kind"] == "bitmask" and parameter.dim() > 1:
                    parameter.mul_(torch.rand(parameter.shape) < 0.4)
            for key, buffer in module.named_buffers():
                if key.endswith(("running_mean", "running_var")):
                    buffer.copy_(torch.rand(buffer.shape) + 0.5)


def inputs(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """A batch that the model takes."""
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        size = getattr(model.config, "image_size", 32)
        return {"pixel_values": torch.randn(2, 3, size, size, generator=generator)}
    if model.main_input_name == "input_values":
        return {"input_values": torch.randn(2, 800, generator=generator)}
    tokens = torch.randint(4, 100, (2, 12), generator=generator)
    if model.config.is_encoder_decoder:
        return {"input_ids": tokens, "decoder_input_ids": tokens}
    return {"input_ids": tokens}


def batch(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    return {
        key: value.to(model.dtype) if value.is_floating_point() else value
        for key, value in inputs(model).items()
    }


@torch.no_grad()
def logits(model: transformers.PreTrainedModel) -> torch.Tensor:
    return model(**batch(model)).logits
