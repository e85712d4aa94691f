"""Families row by row: stock with dense layers, stock with one expert, an edit, or refused."""

import json

import families
import pytest
import torch
from families import _MLA, Family
from moe_families import alive, build, layers_of
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.deepseek_ocr2 import configuration_deepseek_ocr2, modeling_deepseek_ocr2

import compress
from compress.cli.main import call
from compress.errors import RequestError
from compress.experts import writing
from compress.experts.stock import FORMS, ONE_EXPERT
from tiny_models import fill

BATCHES = families.make_batches("qwen2_moe", count=2, rows=4, length=24)
_INDEXER = {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 8, "n_shared_experts": 1}
_SPARSE = {"mlp_layer_types": ["sparse", "sparse"], "first_k_dense_replace": 0}
MORE = {
    "glm_moe_dsa": {**_MLA, **_INDEXER, **_SPARSE, "n_group": 1, "topk_group": 1},
    "deepseek_v32": {**_MLA, **_INDEXER, **_SPARSE, "n_group": 2, "topk_group": 1},
    "bailing_hybrid": {**_MLA, **_SPARSE, "n_group": 2, "topk_group": 1},
    "exaone_moe": {**_SPARSE, "n_group": 1, "topk_group": 1, "num_shared_experts": 1},
}
"""Options of families that families.py doesn't have."""


def make(family, monkeypatch):
    if family == "deepseek_ocr2_text":  # in no Auto class of its own
        kind = configuration_deepseek_ocr2.DeepseekOcr2TextConfig
        known = {*kind().to_dict(), "num_experts"}
        options = {k: v for k, v in families.SMALL.items() if k in known}
        config = kind(**options, mlp_layer_types=["sparse", "sparse"], n_shared_experts=1)
        return alive(fill(modeling_deepseek_ocr2.DeepseekOcr2TextModel(config), 0))
    if family == "qwen3_vl_moe":
        from transformers import Qwen3VLMoeForConditionalGeneration

        config = families.config_of("qwen3_vl_moe", {})
        config.text_config.rope_parameters |= {"mrope_section": [2, 1, 1]}
        return alive(fill(Qwen3VLMoeForConditionalGeneration(config), 0))
    if family in MORE:
        monkeypatch.setitem(families.FAMILIES, family, Family(MORE[family], "text"))
        return alive(families.build(family))
    return build(family)


def output(model, batch):
    with torch.no_grad():
        found = model.eval()(**batch)
    logits = getattr(found, "logits", None)
    return found.last_hidden_state if logits is None else logits


@pytest.mark.parametrize("family", [*MORE, "afmoe", "qwen3_vl_moe", "deepseek_ocr2_text"])
def test_families_with_dense_layers(family, tmp_path, monkeypatch):
    """The last expert layer becomes dense by the family's own config."""
    model = make(family, monkeypatch)
    model.save_pretrained(tmp_path / "src")
    last = layers_of(tmp_path / "src")[-1]
    asked = {"layers": f"i:{last.index}", "experts": 2, "metric": "js-hidden", "stock_only": True}
    done = compress.cd_moe_condense(tmp_path / "src", tmp_path / "out", batches=BATCHES, **asked)
    assert done.plan.options["form"] == "stock"
    found, info = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not any(key.startswith(f"{last.experts}.") for key in found.state_dict())
    moved = (output(found, BATCHES[0]) - output(model, BATCHES[0])).abs().max()
    assert 0 < float(moved) < 10 * float(output(model, BATCHES[0]).std())


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((f, {}) for f in ONE_EXPERT if f not in ("qwen2_moe", "qwen3_next", "granitemoe_swa")),
        ("qwen2_moe", {"shared_gate": "keep"}),
        ("qwen2_moe", {"shared_gate": "keep", "experts": 0}),
        ("qwen3_next", {"shared_gate": "keep"}),
        ("qwen3_5_moe_text", {"experts": 0}),
    ],
    ids=str,
)
def test_families_with_one_expert_a_layer(family, options, tmp_path, monkeypatch):
    """Stock, and equal to the edits that the same plan gives."""
    model = build(family)
    model.save_pretrained(tmp_path / "src")
    asked = {"layers": "all", "batches": BATCHES, "experts": 2, **options}
    done = compress.cd_moe_condense(tmp_path / "src", tmp_path / "out", stock_only=True, **asked)
    assert "with one expert" in " ".join(done.receipt.notes)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    fields = {f for f in ONE_EXPERT[family].fields if f in config}
    assert {config[field] for field in fields} == {1}
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    monkeypatch.setattr(writing, "one_expert_of", lambda config: None)
    edited = compress.cd_moe_condense(tmp_path / "src", tmp_path / "edited", **asked)
    assert edited.plan.options["form"] == "edits"
    assert [r["constants"] for r in edited.plan.rows] == [r["constants"] for r in done.plan.rows]
    by_edits = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    wanted = output(by_edits, BATCHES[0])
    torch.testing.assert_close(output(found, BATCHES[0]), wanted, rtol=1e-4, atol=1e-5)
    assert float((output(model, BATCHES[0]) - wanted).abs().max()) > 1e-3


def test_families_that_always_take_two_experts_are_edited(tmp_path):
    build("phimoe").save_pretrained(tmp_path / "src")
    asked = {"layers": "all", "experts": 2, "batches": BATCHES}
    done = compress.cd_moe_condense(tmp_path / "src", tmp_path / "out", **asked)
    assert done.plan.options["form"] == "edits"
    with pytest.raises(RequestError, match=r"`--stock-only`: .*phimoe"):
        compress.cd_moe_condense(tmp_path / "src", tmp_path / "no", stock_only=True, **asked)


def test_jamba_without_experts_is_dense(tmp_path):
    """One expert means none there; its dense layers are padded, so that it is asked for."""
    build("jamba").save_pretrained(tmp_path / "src")
    asked = {"layers": "all", "experts": 2, "batches": BATCHES}
    compress.cd_moe_condense(tmp_path / "src", tmp_path / "out", stock_only=True, **asked)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert found.config.num_experts == 1
    assert not any("expert" in name for name in found.state_dict())
    edited = compress.cd_moe_condense(tmp_path / "src", tmp_path / "edited", **asked)
    assert edited.plan.options["form"] == "edits"
    wanted = output(AutoModelForCausalLM.from_pretrained(tmp_path / "edited"), BATCHES[0])
    torch.testing.assert_close(output(found, BATCHES[0]), wanted, rtol=1e-4, atol=1e-5)


def test_every_spelling_belongs_to_a_family_that_there_is():
    """A name misspelt in the tables would go unnoticed: its family would be edited."""
    parts = {"qwen3_vl_moe_text", "llama4_text", "deepseek_ocr2_text", "qwen3_5_moe_text"}
    for name in {*FORMS, *ONE_EXPERT} - parts:
        AutoConfig.for_model(name)


def test_a_bare_model_is_compared_by_its_hidden_states(tmp_path):
    config = families.config_of("qwen2_moe", {})
    fill(AutoModel.from_config(config), 0).save_pretrained(tmp_path / "src")
    asked = {"layers": 1, "experts": 1, "batches": BATCHES}
    with pytest.raises(RequestError, match="without a head") as found:
        compress.cd_moe_condense(tmp_path / "src", tmp_path / "out", **asked)
    assert "--metric js-hidden" in found.value.hint
    compress.cd_moe_condense(tmp_path / "src", tmp_path / "out", metric="js-hidden", **asked)
    again = AutoModel.from_pretrained(tmp_path / "out")
    assert sum(hasattr(layer.mlp, "experts") for layer in again.layers) == 1


DEEPSEEK = """
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


class DeepseekConfig(PretrainedConfig):
    model_type = "deepseek"

    def __init__(self, hidden_size=8, n_routed_experts=4, num_hidden_layers=2, **more):
        self.hidden_size, self.n_routed_experts = hidden_size, n_routed_experts
        self.num_hidden_layers, self.vocab_size = num_hidden_layers, 32
        super().__init__(**more)


class DeepseekMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        h = config.hidden_size
        self.gate_proj, self.up_proj = nn.Linear(h, 4, bias=False), nn.Linear(h, 4, bias=False)
        self.down_proj, self.act_fn = nn.Linear(4, h, bias=False), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class DeepseekMoE(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.experts = nn.ModuleList(DeepseekMLP(config) for _ in range(config.n_routed_experts))
        self.gate = nn.Linear(config.hidden_size, config.n_routed_experts, bias=False)
        self.shared_experts = DeepseekMLP(config)

    def forward(self, x):
        weight = self.gate(x).softmax(-1)
        routed = sum(weight[..., i, None] * e(x) for i, e in enumerate(self.experts))
        return routed + self.shared_experts(x)


class DeepseekDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config):
        super().__init__()
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size)
        self.mlp = DeepseekMoE(config)

    def forward(self, hidden_states, **more):
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class DeepseekForCausalLM(PreTrainedModel):
    config_class = DeepseekConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DeepseekDecoderLayer(config) for _ in range(2))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()
"""


def test_deepseek_v1_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    """DeepSeekMoE-16B has no native class: its experts are modules of its own code, not stacked."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    place = tmp_path / "src"
    place.mkdir()
    (place / "modeling_deepseek.py").write_text(DEEPSEEK)
    scope = {"__name__": "modeling_deepseek"}
    exec(DEEPSEEK, scope)
    scope["DeepseekForCausalLM"](scope["DeepseekConfig"]()).save_pretrained(place)
    config = json.loads((place / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "modeling_deepseek.DeepseekConfig",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM",
    }
    (place / "config.json").write_text(json.dumps(config))
    argv = ["cd-moe-condense", str(place), "-o", str(tmp_path / "out"), "--calib", "demo"]
    for more, words in (
        ([], "trust-remote-code"),
        (["--trust-remote-code"], "`layers.0.mlp.experts` (ModuleList) can't be condensed"),
    ):
        assert call([*argv, *more]) == 2
        said = capsys.readouterr().err
        assert words in " ".join(said.split())
        assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
