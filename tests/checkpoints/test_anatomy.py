from __future__ import annotations

import accelerate
import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import silu
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from compress.checkpoints.anatomy import Anatomy, matrix_view, read_anatomy
from compress.checkpoints.roles import ROLES, roles_of_block
from compress.checkpoints.source import open_source
from compress.errors import RequestError
from tiny_models import ARCHITECTURES, BLOCKS, MORE_ARCHITECTURES, build

EVERY = [*ARCHITECTURES, *MORE_ARCHITECTURES]

_GATED = {
    **{f"self_attn.{p}_proj": p for p in "qkvo"},
    **{f"mlp.{p}_proj": p for p in ("gate", "up", "down")},
}
_EXPERTS = {f"mlp.experts.{e}.{p}_proj": p for e in range(4) for p in ("gate", "up", "down")}
_ATTENTION = {f"self_attn.{p}_proj": p for p in "qkvo"}

# Block 1 of each family, written down by hand from its modeling file.
ROLES_OF = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "gemma2": _GATED,
    "phi": {
        **{f"self_attn.{p}_proj": p for p in "qkv"},
        "self_attn.dense": "o",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
    },
    "gpt2": {"attn.c_attn": "qkv", "attn.c_proj": "o", "mlp.c_fc": "fc1", "mlp.c_proj": "fc2"},
    "gpt_neox": {
        "attention.query_key_value": "qkv",
        "attention.dense": "o",
        "mlp.dense_h_to_4h": "fc1",
        "mlp.dense_4h_to_h": "fc2",
    },
    "opt": {
        **{f"self_attn.{p}_proj": p for p in "qkv"},
        "self_attn.out_proj": "o",
        "fc1": "fc1",
        "fc2": "fc2",
    },
    "qwen2_moe": {
        **_ATTENTION,
        **_EXPERTS,
        **{f"mlp.shared_expert.{p}_proj": p for p in ("gate", "up", "down")},
    },
    "mixtral": {**_ATTENTION, **_EXPERTS},
    "bert": {
        "attention.self.query": "q",
        "attention.self.key": "k",
        "attention.self.value": "v",
        "attention.output.dense": "o",
        "intermediate.dense": "fc1",
        "output.dense": "fc2",
    },
    "phi3": {
        "self_attn.qkv_proj": "qkv",
        "self_attn.o_proj": "o",
        "mlp.gate_up_proj": "gate_up",
        "mlp.down_proj": "down",
    },
    "modernbert": {"attn.Wqkv": "qkv", "attn.Wo": "o", "mlp.Wi": "gate_up", "mlp.Wo": "down"},
    "starcoder2": {**_ATTENTION, "mlp.c_fc": "fc1", "mlp.c_proj": "fc2"},
    "gptj": {
        "attn.q_proj": "q",
        "attn.k_proj": "k",
        "attn.v_proj": "v",
        "attn.out_proj": "o",
        "mlp.fc_in": "fc1",
        "mlp.fc_out": "fc2",
    },
    "t5": {
        **{f"layer.0.SelfAttention.{p}": p for p in "qkvo"},
        **{
            f"layer.1.DenseReluDense.{n}": r
            for n, r in zip(["wi_0", "wi_1", "wo"], ["gate", "up", "down"], strict=True)
        },
    },
    "gpt_oss": {**_ATTENTION, **_EXPERTS},
    "vit": {
        **{f"attention.{p}_proj": p for p in "qkvo"},
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
    },
}

# (embeddings, heads, final norms) of the twelve.
REST_OF = {
    **dict.fromkeys(
        ["llama", "mistral", "qwen2", "qwen3", "gemma2", "qwen2_moe", "mixtral"],
        (("model.embed_tokens",), ("lm_head",), ("model.norm",)),
    ),
    "phi": (("model.embed_tokens",), ("lm_head",), ("model.final_layernorm",)),
    "gpt2": (("transformer.wte", "transformer.wpe"), ("lm_head",), ("transformer.ln_f",)),
    "gpt_neox": (("gpt_neox.embed_in",), ("lm_head",), ("gpt_neox.final_layer_norm",)),
    "opt": (
        ("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        ("lm_head",),
        ("model.decoder.final_layer_norm",),
    ),
    "bert": (
        tuple(f"bert.embeddings.{n}_embeddings" for n in ("word", "position", "token_type")),
        ("cls.predictions.transform.dense", "cls.predictions.decoder"),
        (),  # each block ends in its norm
    ),
}


def check_complete(model: nn.Module, anatomy: Anatomy) -> None:
    """Assert that each parameter of a block with two or more dimensions is in one list, once."""
    for block in anatomy.blocks:
        edited = {matrix.parameter for matrix in block.matrices}
        skipped = dict(block.skipped)
        named = model.get_submodule(block.name).named_parameters(prefix=block.name)
        wide = {name: p for name, p in named if p.ndim >= 2}
        assert edited | set(skipped) == set(wide)
        assert not edited & set(skipped)
        assert all(skipped.values())
        for name in edited:
            own = [m for m in block.matrices if m.parameter == name]
            assert sum(m.numel for m in own) == wide[name].numel()
            for matrix in own:
                assert matrix_view(wide[name], matrix).shape == matrix.shape
    names = [matrix.name for matrix in anatomy.matrices]
    assert len(set(names)) == len(names)
    assert {matrix.role for matrix in anatomy.matrices} <= set(ROLES)


@pytest.mark.parametrize("arch", ROLES_OF)
def test_roles_by_the_book(arch):
    block = read_anatomy(build(arch)).stacks[0][1]
    assert {m.name.removeprefix(f"{block.name}."): m.role for m in block.matrices} == ROLES_OF[arch]


@pytest.mark.parametrize("arch", EVERY)
def test_every_weight_of_a_block_is_named_once(arch):
    model = build(arch)
    anatomy = read_anatomy(model)
    check_complete(model, anatomy)
    parameters = dict(model.named_parameters())
    with torch.no_grad():  # the views of a parameter cover it, and no element twice
        for name in {matrix.parameter for matrix in anatomy.matrices}:
            parameters[name].zero_()
        for matrix in anatomy.matrices:
            matrix_view(parameters[matrix.parameter], matrix).add_(1)
        for name in {matrix.parameter for matrix in anatomy.matrices}:
            assert (parameters[name] == 1).all()


@pytest.mark.parametrize("arch", EVERY)
def test_a_skeleton_has_the_same_anatomy(arch):
    model = build(arch)
    with accelerate.init_empty_weights(include_buffers=False):
        skeleton = type(model)._from_config(model.config)
    assert next(skeleton.parameters()).device.type == "meta"
    assert read_anatomy(skeleton) == read_anatomy(model)


@pytest.mark.parametrize("arch", REST_OF)
def test_the_rest_of_the_model(arch):
    anatomy = read_anatomy(build(arch))
    assert (anatomy.embeddings, anatomy.heads, anatomy.final_norms) == REST_OF[arch]
    assert [len(stack) for stack in anatomy.stacks] == [BLOCKS]
    assert [(b.stack, b.index) for b in anatomy.blocks] == [(0, i) for i in range(BLOCKS)]
    assert anatomy.coverage > 0.95
    edited = {matrix.module for matrix in anatomy.matrices}
    assert not edited & {*anatomy.embeddings, *anatomy.heads}


def test_norms_of_a_block():
    gemma, neox = (read_anatomy(build(arch)).blocks[2] for arch in ("gemma2", "gpt_neox"))
    assert len(gemma.norms) == 4
    assert neox.norms == tuple(
        f"gpt_neox.layers.2.{n}_layernorm" for n in ("input", "post_attention")
    )


@pytest.mark.parametrize("arch", ["t5", "bart"])
def test_encoder_then_decoder(arch):
    anatomy = read_anatomy(build(arch))
    assert ["encoder" in stack[0].name for stack in anatomy.stacks] == [True, False]
    assert [len(stack) for stack in anatomy.stacks] == {"t5": [4, 4], "bart": [4, 3]}[arch]


class TestViews:
    """A view is what the model's own code multiplies by."""

    @pytest.mark.parametrize("arch", [a for a in EVERY if a != "jetmoe"])
    def test_of_a_layer(self, arch):
        model = build(arch)
        parameters = dict(model.named_parameters())
        for matrix in read_anatomy(model).matrices:
            if matrix.name != matrix.module:
                continue
            layer, x = model.get_submodule(matrix.module), torch.randn(3, matrix.shape[1])
            bias = layer.bias if layer.bias is not None else 0
            expected = x @ matrix_view(parameters[matrix.parameter], matrix).T + bias
            assert torch.allclose(layer(x), expected, atol=1e-5)

    @pytest.mark.parametrize(
        "arch",
        ["qwen2_moe", "mixtral", "qwen3_moe", "granitemoe", "deepseek_v3", "jamba", "gpt_oss"],
    )
    def test_of_an_expert(self, arch):
        model = build(arch)
        anatomy, parameters = read_anatomy(model), dict(model.named_parameters())
        module = next(m.module for m in anatomy.matrices if m.expert == 2)
        experts, x = model.get_submodule(module), torch.randn(5, 32)
        chosen, weight = torch.full((5, 1), 2), torch.ones(5, 1)

        def apply(part: str, value: torch.Tensor) -> torch.Tensor:
            matrix = anatomy.matrix(f"{module}.2.{part}_proj")
            return value @ matrix_view(parameters[matrix.parameter], matrix).T

        gate, up = apply("gate", x), apply("up", x)
        if arch == "gpt_oss":
            both = experts.gate_up_proj_bias[2]
            gate, up = (gate + both[0::2]).clamp(max=7), (up + both[1::2]).clamp(-7, 7)
            inner = (up + 1) * gate * torch.sigmoid(1.702 * gate)
            expected = apply("down", inner) + experts.down_proj_bias[2]
        else:
            expected = apply("down", silu(gate) * up)
        assert torch.allclose(experts(x, chosen, weight), expected, atol=1e-4)

    def test_of_llama4s_transposed_experts(self):
        model = build("llama4")
        anatomy, parameters = read_anatomy(model), dict(model.named_parameters())
        experts = model.model.layers[1].feed_forward.experts
        x = torch.randn(4, 3, 32)
        got = experts(x.reshape(-1, 32)).view(4, 3, 32)
        for expert in range(4):
            gate, up, down = (
                matrix_view(parameters[m.parameter], m)
                for m in anatomy.blocks[1].matrices
                if m.expert == expert
            )
            expected = (silu(x[expert] @ gate.T) * (x[expert] @ up.T)) @ down.T
            assert torch.allclose(got[expert], expected, atol=1e-5)

    def test_writes_reach_the_parameter(self):
        model = build("gpt_oss")
        matrix = read_anatomy(model).matrix("model.layers.1.mlp.experts.3.up_proj")
        parameter = dict(model.named_parameters())[matrix.parameter]
        before = parameter.detach().clone()
        with torch.no_grad():
            matrix_view(parameter, matrix).zero_()
        changed = parameter != before
        assert changed[3, :, 1::2].all()
        assert changed.sum() == matrix.numel

    def test_a_tensor_of_another_size_is_refused(self):
        matrix = read_anatomy(build("llama")).matrices[0]
        with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj"):
            matrix_view(torch.zeros(3, 32), matrix)


class TestSkipped:
    def reasons(self, arch: str) -> dict[str, str]:
        return {
            name.removeprefix(f"{block.name}."): reason
            for block in read_anatomy(build(arch)).blocks
            for name, reason in block.skipped
        }

    def test_routers_and_one_row_gates(self):
        assert self.reasons("qwen2_moe") == {
            "mlp.gate.weight": "a router",
            "mlp.shared_expert_gate.weight": "a one-row gate",
        }
        assert self.reasons("mixtral") == {"mlp.gate.weight": "a router"}
        assert self.reasons("llama4") == {"feed_forward.router.weight": "a router"}
        assert set(self.reasons("jetmoe").values()) == {"a router"}

    def test_biases_of_experts(self):
        assert self.reasons("gpt_oss")["mlp.experts.gate_up_proj_bias"] == "a bias"

    def test_state_space_parts(self):
        reasons = self.reasons("mamba")
        assert reasons["mixer.conv1d.weight"] == "a depthwise convolution"
        assert "MambaMixer" in reasons["mixer.A_log"]

    def test_embeddings_inside_blocks(self):
        assert (
            "embedding"
            in self.reasons("t5")["layer.0.SelfAttention.relative_attention_bias.weight"]
        )

    def test_nothing_in_plain_families(self):
        assert all(self.reasons(arch) == {} for arch in ("llama", "gpt2", "bert", "opt"))


class Layer(nn.Module):
    def __init__(self, experts: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1, self.fc2, self.norm = nn.Linear(4, 6), nn.Linear(6, 4), nn.LayerNorm(4)
        self.experts = experts


class Model(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.layers = nn.ModuleList(layers)
        self.score = nn.Linear(4, 2)


class TestOtherModels:
    def test_a_matrix_that_blocks_share_is_edited_in_the_first(self):
        model = Model(Layer(), Layer())
        model.layers[1].fc1.weight = model.layers[0].fc1.weight
        first, second = read_anatomy(model).blocks
        assert first.skipped == ()
        assert second.skipped == (("layers.1.fc1.weight", "tied to `layers.0.fc1.weight`"),)
        assert [m.name for m in second.matrices] == ["layers.1.fc2"]

    def test_ties_that_only_the_model_declares(self):
        model = Model(Layer(), Layer(), Layer())
        model.all_tied_weights_keys = {
            f"layers.{i}.fc2.weight": "layers.0.fc2.weight" for i in (1, 2)
        }
        assert [len(block.skipped) for block in read_anatomy(model).blocks] == [0, 1, 1]
        model.all_tied_weights_keys = {"layers.0.fc2.weight": "layers.1.fc2.weight"}
        # Stored in a later block than the first that needs it: no block may change it.
        assert [len(block.skipped) for block in read_anatomy(model).blocks] == [1, 1, 0]

    def test_a_matrix_tied_within_a_block_or_to_the_outside_is_left_alone(self):
        model = Model(Layer())
        model.layers[0].fc2.weight = model.layers[0].fc1.weight
        assert len(read_anatomy(model).blocks[0].skipped) == 2
        model = Model(Layer())
        model.layers[0].fc1.weight = model.words.weight
        assert read_anatomy(model).blocks[0].skipped == (
            ("layers.0.fc1.weight", "tied to `words.weight`"),
        )

    @pytest.mark.parametrize("kind", ["list", "dict"])
    def test_experts_that_are_modules(self, kind):
        class Sparse(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                parts = [Layer() for _ in range(3)]
                named = {f"expert_{i}": part for i, part in enumerate(parts)}
                self.experts = nn.ModuleList(parts) if kind == "list" else nn.ModuleDict(named)
                self.wg = nn.Linear(4, 3)  # a row for each expert
                self.dense = nn.Linear(4, 5)

        class Sparser(Layer):
            def __init__(self) -> None:
                super().__init__()
                self.ffn = Sparse()

        (block,) = read_anatomy(Model(Sparser())).blocks
        assert block.skipped == (("layers.0.ffn.wg.weight", "a router"),)
        numbers = {m.expert for m in block.matrices if ".experts." in m.name}
        assert numbers == {0, 1, 2}
        assert {m.expert for m in block.matrices if ".experts." not in m.name} == {None}

    @pytest.mark.parametrize(("flag", "layout"), [(None, "skipped"), (True, "out"), (False, "out")])
    def test_stacked_experts_need_a_layout(self, flag, layout):
        class Stacked(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.num_experts = 3
                self.mystery = nn.Parameter(torch.zeros(3, 4, 6))
                if flag is not None:
                    self.is_transposed = flag

        (block,) = read_anatomy(Model(Layer(Stacked()))).blocks
        own = [m for m in block.matrices if m.expert is not None]
        if flag is None:
            assert (
                "layers.0.experts.mystery",
                "stacked experts whose layout can't be told",
            ) in block.skipped
            assert not own
        else:
            assert [m.shape for m in own] == [(6, 4) if flag else (4, 6)] * 3

    def test_separate_stacks_of_experts_show_their_layout_by_the_residual_width(self):
        class Stacked(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.n_experts = 3
                self.gate_proj = nn.Parameter(torch.zeros(3, 6, 4))
                self.up_proj = nn.Parameter(torch.zeros(3, 6, 4))
                self.down_proj = nn.Parameter(torch.zeros(3, 4, 6))

        (block,) = read_anatomy(Model(Layer(Stacked()))).blocks
        own = [m for m in block.matrices if m.expert == 1]
        assert [(m.role, m.shape, m.transposed) for m in own] == [
            ("gate", (6, 4), False),
            ("up", (6, 4), False),
            ("down", (4, 6), False),
        ]

    def test_no_blocks(self):
        model = nn.Sequential()
        model.encoder = nn.Linear(3, 3)
        model.pooler = nn.Tanh()
        with pytest.raises(RequestError, match=r"`encoder` \(Linear\), `pooler` \(Tanh\)"):
            read_anatomy(model)

    def test_lists_of_bare_layers_or_embeddings_are_no_stacks(self):
        model = Model(Layer())
        model.heads = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        model.tables = nn.ModuleList([nn.Sequential(nn.Embedding(3, 4))])
        assert [b.name for b in read_anatomy(model).blocks] == ["layers.0"]

    def test_a_stack_reached_twice_is_one(self):
        model = Model(Layer())
        model.alias = nn.Module()
        model.alias.layers = model.layers
        assert [b.name for b in read_anatomy(model).blocks] == ["layers.0"]

    def test_stages_that_are_lists_are_looked_into(self):
        model = Model(Layer())
        model.layers = nn.ModuleList([nn.ModuleList([Layer(), Layer()]), nn.ModuleList([Layer()])])
        assert [len(stack) for stack in read_anatomy(model).stacks] == [2, 1]

    def test_a_sequential_counts_if_it_is_of_one_class(self):
        model = Model(Layer())
        model.layers = nn.Sequential(Layer(), Layer())
        assert len(read_anatomy(model).blocks) == 2
        model.layers = nn.Sequential(Layer(), Model(Layer()))
        assert [b.name for b in read_anatomy(model).blocks] == ["layers.1.layers.0"]

    @pytest.mark.parametrize(
        ("names", "final"),
        [
            (["pre_norm", "LAYERS", "post_norm"], ("post_norm",)),  # clip
            (["last_norm", "LAYERS"], ("last_norm",)),  # opt
            (["LAYERS", "layernorm_embedding"], ()),  # bart
            (["LAYERS"], ()),
        ],
    )
    def test_the_norm_that_follows_a_stack(self, names, final):
        model = nn.Module()
        for name in names:
            part = nn.ModuleList([Layer()]) if name == "LAYERS" else nn.LayerNorm(4)
            model.add_module(name, part)
        assert read_anatomy(model).final_norms == final

    def test_coverage_leaves_embeddings_and_output_out(self):
        model = Model(Layer())
        inside = sum(p.numel() for p in model.layers.parameters())
        head = sum(p.numel() for p in model.score.parameters())
        assert read_anatomy(model).coverage == pytest.approx(inside / (inside + head))

    def test_an_unknown_matrix_suggests_a_near_one(self):
        with pytest.raises(RequestError, match=r"self_atn") as caught:
            read_anatomy(build("llama")).matrix("model.layers.0.self_atn.q_proj")
        assert "`model.layers.0.self_attn.q_proj`" in caught.value.hint


@pytest.mark.parametrize(
    ("shapes", "roles"),
    [
        ({"attn.out_proj": (8, 8), "attn.in_proj": (24, 8)}, ["other", "other"]),  # a mixer
        ({"m.w1": (12, 8), "m.w3": (12, 8), "m.w2": (8, 12)}, ["gate", "up", "fc2->down"]),
        ({"m.w1": (12, 8), "m.w2": (8, 12)}, ["fc1", "fc2"]),
        ({"m.input_linear": (24, 8), "m.output_linear": (8, 12)}, ["gate_up", "down"]),
        ({"m.input_linear": (12, 8), "m.output_linear": (8, 12)}, ["fc1", "fc2"]),
        ({"f.key": (12, 8), "f.value": (8, 12), "f.receptance": (8, 8)}, ["other"] * 3),  # rwkv
        ({"attention.lin": (8, 8), "mystery": (8, 8)}, ["other", "other"]),
    ],
)
def test_roles_from_neighbours(shapes, roles):
    expected = [role.rpartition("->")[2] for role in roles]
    assert list(roles_of_block(shapes).values()) == expected


# Model type -> the share of its blocks' weights that are matrices, on the default config. Stages
# with convolutions, stacked mixers and tied blocks have less.
NAMES = """
    arcee apertus biogpt cohere cohere2 exaone4 gemma glm4 granite helium llama ministral3
    nemotron_h olmo3 persimmon smollm3 seed_oss xglm gpt_neo codegen phimoe olmoe
    ernie4_5_moe glm4_moe minimax flex_olmo jetmoe granitemoeshared bamba qwen3_next lfm2
    falcon_h1 mamba2 recurrent_gemma roberta electra deberta-v2 distilbert mpnet rembert
    xlm-roberta albert nomic_bert mt5 mbart marian pegasus m2m_100 blenderbot led whisper
    deit beit siglip clip swin hiera nllb-moe switch_transformers aria_text longcat_flash
"""
FAMILIES = dict.fromkeys(NAMES.split(), 0.9)
FAMILIES |= {"wav2vec2": 0.8, "xlnet": 0.6, "zamba2": 0.5, "segformer": 0.6}


def default_skeleton(kind: str) -> nn.Module:
    """Return the family's model on meta, with its default config cut to few blocks."""
    config = CONFIG_MAPPING[kind]()
    if not getattr(config, "layer_types", None) and kind not in {"zamba2", "bamba", "falcon_h1"}:
        for key in ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers"):
            if isinstance(getattr(config, key, None), int):
                setattr(config, key, min(getattr(config, key), 4))
    for mapping in (
        "CAUSAL_LM",
        "SEQ_TO_SEQ_CAUSAL_LM",
        "MASKED_LM",
        "IMAGE_CLASSIFICATION",
        "CTC",
    ):
        found = getattr(transformers, f"MODEL_FOR_{mapping}_MAPPING").get(type(config), None)
        if found is not None:
            break
    found = found or transformers.MODEL_MAPPING[type(config)]
    with accelerate.init_empty_weights(include_buffers=True):
        return (found[0] if isinstance(found, tuple) else found)._from_config(config)


@pytest.mark.parametrize("kind", FAMILIES)
def test_further_families(kind):
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no `{kind}`")
    model = default_skeleton(kind)
    if kind == "aria_text" and hasattr(model.get_submodule("model.layers.0.mlp.experts"), "fc1"):
        pytest.skip("this version of transformers keeps its experts in a class of their own")
    anatomy = read_anatomy(model)
    check_complete(model, anatomy)
    inside = sum(
        p.numel() for b in anatomy.blocks for p in model.get_submodule(b.name).parameters()
    )
    assert sum(m.numel for m in anatomy.matrices) / inside > FAMILIES[kind]
    assert anatomy.coverage > 0.75
    for matrix in anatomy.matrices:
        assert "router" not in matrix.name


def test_a_really_trained_model(assets):
    model = open_source(assets / "models" / "stories260k").load()
    anatomy = read_anatomy(model)
    assert len(anatomy.blocks) == 5
    assert len(anatomy.matrices) == 35
    assert anatomy.coverage > 0.99


def test_the_shipped_model(demo_model):
    anatomy = read_anatomy(open_source(demo_model).load())
    assert len(anatomy.blocks) >= 8
    assert {m.role for m in anatomy.matrices} == set("qkvo") | {"gate", "up", "down"}
