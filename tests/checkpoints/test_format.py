"""Edited checkpoints: equal after a plain load in a fresh process, refused by stock code."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import edited_models
import pytest
import safetensors.torch
import torch
import transformers
from edited_models import CASES

import compress
from compress.checkpoints import edits
from compress.errors import RequestError

NAMES = list(CASES)
LOAD = textwrap.dedent("""
    import json, sys
    from pathlib import Path
    {imports}
    sys.path.insert(0, sys.argv[2])
    root = Path(sys.argv[1])
    import edited_models, torch, transformers
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    report = {{}}
    for name, auto in json.loads((root / "cases.json").read_text()).items():
        try:
            model = getattr(transformers, auto).from_pretrained(root / name)
        except Exception as error:
            report[name] = f"{{type(error).__name__}}: {{error}}"
            continue
        torch.save(edited_models.logits(model), root / f"{{name}}.{word}")
        model.save_pretrained(root / f"{{name}} again {word}")
        report[name] = "loaded"
    (root / "report.{word}").write_text(json.dumps(report))
""")
# the way a stranger opens it: this package can't be imported, nor can edited_models import it
STRANGER = textwrap.dedent("""
    import json, sys
    from pathlib import Path

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "compress":
                raise ImportError("compress is not installed here")

    sys.meta_path.insert(0, Blocked())
    import torch, transformers
    root = Path(sys.argv[1])
    report = {}
    for name, auto in json.loads((root / "cases.json").read_text()).items():
        for cls in (auto, "AutoModel"):
            try:
                getattr(transformers, cls).from_pretrained(root / name)
                report[f"{name} as {cls}"] = "loaded"
            except Exception as error:
                report[f"{name} as {cls}"] = f"{type(error).__name__}: {error}"
    (root / "report.stranger").write_text(json.dumps(report))
""")


def run(code: str, root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), str(Path(edited_models.__file__).parent)],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Every case saved once, and its logits in memory."""
    root = tmp_path_factory.mktemp("edited")
    memory = {}
    for name in NAMES:
        model = edited_models.make(name)
        memory[name] = edited_models.logits(model)
        compress.save(model, root / name)
    (root / "cases.json").write_text(json.dumps({n: c.auto for n, c in CASES.items()}))
    return root, memory


@pytest.fixture(scope="module")
def fresh(saved):
    """One fresh process has loaded, run and saved again every case."""
    run(LOAD.format(imports="import compress", word="fresh"), saved[0])
    return json.loads((saved[0] / "report.fresh").read_text())


@pytest.fixture(scope="module")
def stranger(saved):
    run(STRANGER, saved[0])
    return json.loads((saved[0] / "report.stranger").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_process_computes_the_same_bits(saved, fresh, name):
    root, memory = saved
    assert fresh[name] == "loaded"
    assert torch.equal(torch.load(root / f"{name}.fresh"), memory[name])


@pytest.mark.parametrize("name", NAMES)
def test_saved_again_every_file_is_the_same(saved, fresh, name):
    assert fresh[name] == "loaded"
    first, second = saved[0] / name, saved[0] / f"{name} again fresh"
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert [n for n in names if (first / n).read_bytes() != (second / n).read_bytes()] == []


@pytest.mark.parametrize("name", NAMES)
def test_without_this_package_loading_ends_in_an_error(stranger, name):
    for cls in (CASES[name].auto, "AutoModel"):
        assert "RuntimeError" in stranger[f"{name} as {cls}"]
        assert "mismatch" in stranger[f"{name} as {cls}"]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_training_moves_every_edited_parameter(saved, name):
    model = getattr(transformers, CASES[name].auto).from_pretrained(saved[0] / name)
    model.train()
    model(**edited_models.inputs(model)).logits.float().square().mean().backward()
    for module in CASES[name].edits:
        for key, parameter in model.get_submodule(module).named_parameters():
            assert parameter.grad is not None, (module, key)
            if not key.endswith("bias"):  # softmax can't see a key's bias
                assert parameter.grad.abs().sum() > 0, (module, key)


@pytest.mark.parametrize("name", NAMES)
def test_the_base_model_reads_a_head_checkpoint_and_gives_it_back(saved, name, tmp_path):
    whole = edited_models.make(name).base_model
    base = transformers.AutoModel.from_pretrained(saved[0] / name)
    for (key, ours), theirs in zip(base.state_dict().items(), whole.state_dict().values()):
        assert torch.equal(ours, theirs), key
    base.save_pretrained(tmp_path / "base")
    again = getattr(transformers, CASES[name].auto).from_pretrained(tmp_path / "base").base_model
    for (key, ours), theirs in zip(again.state_dict().items(), whole.state_dict().values()):
        assert torch.equal(ours, theirs), key


@pytest.mark.parametrize("name", ["lowrank llama", "lowrank gpt2", "dense_mlp mixtral"])
def test_bfloat16(saved, name, tmp_path):
    auto = getattr(transformers, CASES[name].auto)
    model = auto.from_pretrained(saved[0] / name, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    compress.save(model, tmp_path / "half")
    again = compress.load(tmp_path / "half")
    assert again.dtype == torch.bfloat16
    assert torch.equal(edited_models.logits(again), edited_models.logits(model))


@pytest.mark.parametrize("name", ["several llama", "dense_mlp mixtral"])
def test_shards_and_offload_to_disk(name, tmp_path):
    model = edited_models.make(name)
    compress.save(model, tmp_path / "out", max_shard_size="20KB")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert torch.equal(
        edited_models.logits(compress.load(tmp_path / "out")), edited_models.logits(model)
    )
    last = len(model.model.layers) - 1
    places = {f"model.layers.{i}": "cpu" for i in range(last)}
    places |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    places |= {"lm_head": "cpu", f"model.layers.{last}": "disk"}
    offloaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", device_map=places, offload_folder=tmp_path / "offload"
    )
    assert torch.equal(edited_models.logits(offloaded), edited_models.logits(model))


def rewrite(directory: Path, change) -> None:
    """Change a saved checkpoint's tensors."""
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def reconfigure(directory: Path, change) -> None:
    """Change a saved checkpoint's list of edits."""
    config = json.loads((directory / "config.json").read_text())
    change(config["quantization_config"])
    (directory / "config.json").write_text(json.dumps(config))


@pytest.fixture
def llama(tmp_path):
    compress.save(edited_models.make("lowrank llama"), tmp_path / "llama")
    return tmp_path / "llama"


def test_a_missing_tensor_of_an_edited_module_is_an_error(llama):
    rewrite(llama, lambda t: t.pop("model.layers.0.self_attn.q_proj.up.bias"))
    with pytest.raises(RequestError, match=r"model\.layers\.0\.self_attn\.q_proj\.up\.bias"):
        compress.load(llama)


def test_a_missing_running_statistic_is_an_error(tmp_path):
    name = "conv, norm, linear resnet"
    compress.save(edited_models.make(name), tmp_path / "out")
    stored = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    gone = next(
        key for key in stored if "stages.1" in key and key.endswith("0.normalization.running_var")
    )
    rewrite(tmp_path / "out", lambda t: t.pop(gone))
    with pytest.raises(RequestError, match="running_var"):
        transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")


def test_a_shape_that_the_edit_does_not_declare_is_an_error(llama):
    reconfigure(llama, lambda c: c["modules"]["model.layers.2.mlp.down_proj"].update(rank=6))
    with pytest.raises((RequestError, RuntimeError), match=r"mismatch|declares"):
        compress.load(llama)


def test_the_check_of_shapes_itself(llama, monkeypatch):
    """transformers 5.17 lets a wrong shape pass; what we would then say."""
    from compress.checkpoints.format import CompressQuantizer

    real = CompressQuantizer._process_model_before_weight_loading

    def before(self, model, **kw):
        real(self, model, **kw)
        shape, dtype = self._declared["model.layers.2.mlp.down_proj.up.weight"]
        self._declared["model.layers.2.mlp.down_proj.up.weight"] = (
            torch.Size([shape[0], shape[1] + 1]),
            dtype,
        )

    monkeypatch.setattr(CompressQuantizer, "_process_model_before_weight_loading", before)
    with pytest.raises(RequestError, match=r"down_proj\.up\.weight.*on disk.*declares"):
        compress.load(llama)


def test_a_tensor_left_in_another_dtype_is_cast(llama, monkeypatch):
    """transformers 5.17 leaves converted tensors as they are on disk."""
    from compress.checkpoints.format import CompressQuantizer

    real = CompressQuantizer._check_read

    def check_read(self, model, state):
        real(self, model, state)
        state["model.norm.weight"].data = state["model.norm.weight"].data.float()

    monkeypatch.setattr(CompressQuantizer, "_check_read", check_read)
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    assert model.model.norm.weight.dtype == torch.bfloat16


def test_a_later_version_asks_for_an_upgrade(llama):
    reconfigure(llama, lambda c: c.update(version=2))
    with pytest.raises(RequestError, match="version 2") as caught:
        compress.load(llama)
    assert "upgrade" in caught.value.hint


def test_unknown_fields_of_the_config_are_kept(llama, tmp_path):
    reconfigure(llama, lambda c: c.update(note={"by": "me"}))
    compress.save(compress.load(llama), tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["quantization_config"]["note"] == {"by": "me"}


def test_an_unknown_kind_or_module_in_the_file_is_named(llama):
    config = (llama / "config.json").read_text()
    reconfigure(llama, lambda c: c["modules"].update({"lm_head": {"kind": "lowrnk", "rank": 3}}))
    with pytest.raises(RequestError, match=r"lm_head.*lowrnk") as caught:
        compress.load(llama)
    assert "`lowrank`" in caught.value.hint
    (llama / "config.json").write_text(config)
    reconfigure(llama, lambda c: c["modules"].update({"model.layers.9.mlp": {"kind": "post_norm"}}))
    with pytest.raises(RequestError, match=r"model\.layers\.9\.mlp"):
        transformers.AutoModel.from_pretrained(llama)  # no head either: still an error


def test_a_head_that_this_class_lacks_is_left_out(tmp_path):
    model = edited_models.tiny("llama")()
    edits.apply(model, {"lm_head": {"kind": "lowrank", "rank": 4}})
    compress.save(model, tmp_path / "out")
    base = transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert torch.equal(base.norm.weight, model.model.norm.weight)
    other = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(other.model.norm.weight, model.model.norm.weight)


def test_a_dense_checkpoint_is_not_quantized_by_the_way(tmp_path):
    from compress.checkpoints.format import CompressConfig

    edited_models.tiny("llama")().save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="pre-quantized"):
        transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "dense", quantization_config=CompressConfig()
        )


def test_generation_is_the_same_with_and_without_a_cache(saved):
    model = compress.load(saved[0] / "several llama")
    tokens = edited_models.inputs(model)["input_ids"]
    options = {"max_new_tokens": 8, "do_sample": False, "min_new_tokens": 8}
    cached = model.generate(tokens, use_cache=True, **options)
    assert torch.equal(cached, model.generate(tokens, use_cache=False, **options))


def test_a_deep_copy_and_a_pickle_compute_the_same(saved):
    import copy
    import pickle

    model = compress.load(saved[0] / "post_norm llama")
    wanted = edited_models.logits(model)
    assert torch.equal(edited_models.logits(copy.deepcopy(model)), wanted)
    assert torch.equal(edited_models.logits(pickle.loads(pickle.dumps(model))), wanted)


def test_hidden_states_and_gradient_checkpointing_survive_post_norm(saved):
    model = compress.load(saved[0] / "post_norm llama")
    batch = edited_models.inputs(model)
    states = model(**batch, output_hidden_states=True).hidden_states
    assert len(states) == model.config.num_hidden_layers + 1
    model.train()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(torch.equal(p.grad, w) for p, w in zip(model.parameters(), wanted))


def test_the_trainer_takes_an_edited_model(saved, tmp_path):
    model = compress.load(saved[0] / "lowrank llama")
    rows = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(4)]
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            tmp_path / "run", max_steps=2, report_to=[], use_cpu=True, save_strategy="no"
        ),
        train_dataset=rows,
    )
    before = model.model.layers[0].self_attn.q_proj.up.weight.clone()
    trainer.train()
    assert not torch.equal(before, model.model.layers[0].self_attn.q_proj.up.weight)
    trainer.save_model(str(tmp_path / "trained"))
    again = compress.load(tmp_path / "trained")
    assert torch.equal(edited_models.logits(again), edited_models.logits(model.eval()))
