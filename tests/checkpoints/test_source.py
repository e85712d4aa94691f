from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.checkpoints.source import Source, open_source
from compress.errors import RequestError
from tiny_models import ARCHITECTURES, build, make_batch, make_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A llama in one file."""
    return make_checkpoint("llama", tmp_path_factory.mktemp("whole") / "llama")


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """The same llama in shards."""
    root = tmp_path_factory.mktemp("parts")
    return make_checkpoint("llama", root / "llama", max_shard_size="40KB")


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def shards(parts, tmp_path) -> Path:
    return Path(shutil.copytree(parts, tmp_path / "shards"))


def edit_json(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def refused(model: object, *words: str, **options: object) -> RequestError:
    """Assert that opening is refused in one line that says all `words`; return the error."""
    with pytest.raises(RequestError) as caught:
        open_source(model, **options)
    for word in words:
        assert word in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_opens_and_loads_what_was_saved(arch, tmp_path):
    path = make_checkpoint(arch, tmp_path / arch, max_shard_size="60KB")
    source, model = open_source(path), build(arch)
    loaded = source.load()
    batch = make_batch()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert not loaded.training
    assert source.parameters_on_disk() == sum(p.numel() for p in model.parameters())
    assert source.token_limit() == 128
    assert source.model_class() is type(model)
    assert len(source.tokenizer()) == 101


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_on_disk_is_kept_unless_asked(dtype, tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path / "m", dtype=dtype))
    assert source.dtype == dtype
    assert source.load().dtype == dtype
    assert source.load(torch.float64).dtype == torch.float64


def test_mixed_dtypes_follow_the_config(copy):
    file = copy / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].double()
    save_file(tensors, file, metadata={"format": "pt"})
    assert open_source(copy).dtype == torch.float32
    edit_json(copy / "config.json", dtype="bfloat16")
    assert open_source(copy).dtype == torch.bfloat16
    edit_json(copy / "config.json", dtype=None)
    assert open_source(copy).dtype == torch.float32  # most elements


def test_files_and_sizes(whole, parts):
    one, many = open_source(whole), open_source(parts)
    assert set(one.files.values()) == {whole / "model.safetensors"}
    assert len(set(many.files.values())) > 1
    assert set(one.files) == set(many.files)
    assert one.bytes_on_disk() == (whole / "model.safetensors").stat().st_size
    assert many.bytes_on_disk() == sum(f.stat().st_size for f in parts.glob("*.safetensors"))


def test_read_gives_the_stored_tensors_and_never_writes_back(copy):
    source = open_source(copy)
    expected = load_file(copy / "model.safetensors")
    got = source.read(expected)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    got["model.norm.weight"].zero_()
    assert torch.equal(
        source.read(["model.norm.weight"])["model.norm.weight"], expected["model.norm.weight"]
    )


class TestDigest:
    def test_is_of_the_content_not_of_the_files(self, whole, parts):
        assert open_source(whole).digest() == open_source(parts).digest()
        assert open_source(whole).digest().startswith("sha256:")

    def test_one_weight_changes_it(self, copy, whole):
        file = copy / "model.safetensors"
        tensors = load_file(file)
        tensors["model.norm.weight"][3] += 1e-3
        save_file(tensors, file, metadata={"format": "pt"})
        assert open_source(copy).digest() != open_source(whole).digest()

    def test_a_config_value_changes_it_and_a_version_does_not(self, copy, whole):
        edit_json(copy / "config.json", transformers_version="0.0.1")
        assert open_source(copy).digest() == open_source(whole).digest()
        edit_json(copy / "config.json", rms_norm_eps=0.5)
        assert open_source(copy).digest() != open_source(whole).digest()

    def test_many_small_tensors_are_read_with_one_look_at_the_header(self, whole, monkeypatch):
        from compress.checkpoints import tensorfiles

        opened = []
        real = tensorfiles.safe_open
        monkeypatch.setattr(
            tensorfiles, "safe_open", lambda *a, **o: opened.append(a) or real(*a, **o)
        )
        source = open_source(whole)
        source.digest()
        source.check_finite()
        assert len(opened) == 3

    def test_reads_every_dtype(self, tmp_path, copy):
        file = copy / "model.safetensors"
        tensors = load_file(file)
        tensors["a"] = torch.tensor(True)  # 0-d
        tensors["b"] = torch.zeros(3, dtype=torch.bfloat16)
        tensors["c"] = torch.zeros(0)
        save_file(tensors, file, metadata={"format": "pt"})
        assert open_source(copy).digest()


def test_companions_are_all_but_weights_config_code_and_ours(copy):
    for name in ["LICENSE", "chat_template.jinja", "preprocessor_config.json", "README.md"]:
        (copy / name).write_text("{}")
    for name in ["x.py", "pytorch_model.bin", "receipt.json", "plan.json", ".hidden", "old.pt"]:
        (copy / name).write_text("{}")
    (copy / "model.safetensors.index.json.bak").write_text("{}")
    (copy / "flax.index.json").write_text("{}")
    (copy / "onnx").mkdir()
    names = {path.name for path in open_source(copy).companions()}
    assert names == {
        *("LICENSE", "chat_template.jinja", "preprocessor_config.json", "README.md"),
        *("generation_config.json", "tokenizer.json", "tokenizer_config.json"),
        "model.safetensors.index.json.bak",
    }


def test_a_hub_snapshot_holds_symbolic_links(copy, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in copy.iterdir():
        (snapshot / path.name).symlink_to(path)
    source = open_source(snapshot)
    assert source.load() is not None
    assert {p.name for p in source.companions()} == {p.name for p in open_source(copy).companions()}


class TestPickles:
    def test_tensors_are_read_mapped(self, copy, whole):
        tensors = load_file(copy / "model.safetensors")
        (copy / "model.safetensors").unlink()
        torch.save(tensors, copy / "pytorch_model.bin")
        source = open_source(copy)
        assert source.digest() == open_source(whole).digest()
        assert source.load() is not None
        assert source.files["model.norm.weight"].name == "pytorch_model.bin"

    def test_the_format_before_torch_1_6(self, copy, whole):
        tensors = load_file(copy / "model.safetensors")
        (copy / "model.safetensors").unlink()
        torch.save(tensors, copy / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        assert open_source(copy).digest() == open_source(whole).digest()

    def test_code_is_never_run(self, copy, tmp_path):
        (copy / "model.safetensors").unlink()
        mark = tmp_path / "ran"

        class Trap:
            def __reduce__(self):
                return (Path.touch, (mark,))

        torch.save({"w": Trap()}, copy / "pytorch_model.bin")
        refused(copy, "pytorch_model.bin", "more than tensors")
        (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
        refused(copy, "pytorch_model.bin")
        assert not mark.exists()

    def test_not_a_state_dict(self, copy):
        (copy / "model.safetensors").unlink()
        torch.save([torch.zeros(2)], copy / "pytorch_model.bin")
        refused(copy, "pytorch_model.bin", "list")

    def test_truncated(self, copy):
        tensors = load_file(copy / "model.safetensors")
        (copy / "model.safetensors").unlink()
        torch.save(tensors, copy / "pytorch_model.bin")
        data = (copy / "pytorch_model.bin").read_bytes()
        (copy / "pytorch_model.bin").write_bytes(data[: len(data) // 2])
        refused(copy, "pytorch_model.bin")


class TestWhere:
    @pytest.mark.parametrize(
        "name", ["./nowhere", "/nowhere/at/all", "a/b/c", "../nowhere", "~/no where"]
    )
    def test_a_path_that_does_not_exist(self, name):
        refused(name, "no such directory", name)

    def test_a_path_object_is_never_a_hub_name(self):
        refused(Path("org/name"), "no such directory")

    @pytest.mark.parametrize("name", ["org/name", "gpt2"])
    def test_a_hub_name_offline(self, name, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        error = refused(name, name, "offline", "no directory")
        assert "local copy" in error.hint

    def test_a_file(self, whole):
        error = refused(whole / "config.json", "is a file")
        assert str(whole) in error.hint

    def test_a_revision_of_a_directory(self, whole):
        refused(whole, "revision", "v2", revision="v2")

    def test_no_config(self, tmp_path, whole):
        refused(tmp_path, "no config.json")
        shutil.copytree(whole, tmp_path / "checkpoint-7")
        assert "checkpoint-7" in refused(tmp_path, "no config.json").hint

    def test_an_adapter(self, tmp_path):
        (tmp_path / "adapter_config.json").write_text("{}")
        assert "adapter" in refused(tmp_path, "no config.json").hint

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            ("RepositoryNotFoundError", ["no such model on the Hugging Face Hub"]),
            ("RevisionNotFoundError", ["no revision `v9`"]),
            ("GatedRepoError", ["gated"]),
            ("LocalEntryNotFoundError", ["not in the Hugging Face cache", "no route"]),
        ],
    )
    def test_what_the_hub_answers(self, error, words, monkeypatch):
        import huggingface_hub
        from huggingface_hub import constants, errors

        def answer(*args, **options):
            kind = getattr(errors, error)
            raise kind.__new__(kind, "404 from the Hub") from ConnectionError("no route")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        refused("org/name", "org/name", *words, revision="v9")

    def test_pickles_are_fetched_only_without_safetensors(self, copy, monkeypatch):
        import huggingface_hub

        calls = []
        monkeypatch.setattr(
            huggingface_hub, "snapshot_download", lambda name, **o: calls.append(o) or str(copy)
        )
        open_source("org/name", token="t")
        assert len(calls) == 1
        assert "*.bin" in calls[0]["ignore_patterns"]
        assert "*.py" in calls[0]["ignore_patterns"]
        assert calls[0]["token"] == "t"
        (copy / "model.safetensors").unlink()
        refused("org/name", "no weights")
        assert calls[-1]["allow_patterns"] == ["pytorch_model*.bin", "pytorch_model.bin.index.json"]

    def test_a_hub_snapshot_in_the_cache(self, copy, tmp_path, monkeypatch):
        from huggingface_hub import constants

        cache = tmp_path / "cache"
        repo = cache / "models--org--name"
        shutil.copytree(copy, repo / "snapshots" / "a1b2")
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("a1b2")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(cache))
        source = open_source("org/name")
        assert (source.name, source.revision) == ("org/name", "a1b2")
        assert source.load() is not None


class TestConfig:
    def test_no_json(self, copy):
        (copy / "config.json").write_text('{"model_type": "llama",\n "hidden')
        refused(copy, "config.json", "not valid JSON", "line 2")

    def test_not_text(self, copy):
        (copy / "config.json").write_bytes(b"\xff\xfe\x00")
        refused(copy, "config.json", "UTF-8")

    def test_not_an_object(self, copy):
        (copy / "config.json").write_text("[1]")
        refused(copy, "config.json", "list")

    def test_unknown_model_type_suggests_a_near_one(self, copy):
        edit_json(copy / "config.json", model_type="lama")
        assert "`llama`" in refused(copy, "`lama`").hint

    def test_no_model_type(self, copy):
        edit_json(copy / "config.json", model_type=None)
        refused(copy, "model_type")

    def test_code_of_the_checkpoint_needs_consent(self, copy):
        edit_json(copy / "config.json", model_type="mine", auto_map={"AutoConfig": "c.C"})
        (copy / "c.py").write_text("raise SystemExit('ran')")
        assert "--trust-remote-code" in refused(copy, "`mine`", "code").hint

    @pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "awq"])
    def test_other_quantization(self, copy, method):
        edit_json(copy / "config.json", quantization_config={"quant_method": method})
        refused(copy, method)

    def test_values_that_the_config_class_refuses(self, copy):
        edit_json(copy / "config.json", num_attention_heads="many")
        refused(copy, "config.json")

    def test_an_architecture_that_is_not_there_falls_back(self, copy):
        edit_json(copy / "config.json", architectures=["NoSuchForCausalLM"])
        assert open_source(copy).model_class().__name__ == "LlamaForCausalLM"
        edit_json(copy / "config.json", architectures=None)
        assert open_source(copy).model_class().__name__ == "LlamaForCausalLM"

    def test_without_weights_only_for_training(self, copy):
        (copy / "model.safetensors").unlink()
        assert "train" in refused(copy, "no weights").hint
        source = open_source(copy, weights=False)
        assert source.tensors == {}
        assert source.config.hidden_size == 32

    def test_weights_in_another_form_are_named(self, copy):
        (copy / "model.safetensors").rename(copy / "model.gguf")
        assert "model.gguf" in refused(copy, "no weights").hint


class TestBrokenWeights:
    @pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
    def test_truncated(self, copy, keep):
        file = copy / "model.safetensors"
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
        refused(copy, "model.safetensors", "truncated")

    def test_garbage(self, copy):
        (copy / "model.safetensors").write_bytes(b"\x00garbage" * 400)
        refused(copy, "model.safetensors")

    def test_trailing_bytes(self, copy):
        with (copy / "model.safetensors").open("ab") as file:
            file.write(b"more")
        refused(copy, "model.safetensors")

    def test_a_truncated_shard(self, shards):
        file = sorted(shards.glob("*.safetensors"))[-1]
        file.write_bytes(file.read_bytes()[:-8])
        refused(shards, file.name)

    def test_a_missing_shard(self, shards):
        file = sorted(shards.glob("*.safetensors"))[1]
        file.unlink()
        refused(shards, file.name, "lacks 1 of")

    def test_a_tensor_that_its_shard_lacks(self, shards):
        index = shards / "model.safetensors.index.json"
        value = json.loads(index.read_text())
        value["weight_map"]["model.extra.weight"] = sorted(shards.glob("*.safetensors"))[0].name
        index.write_text(json.dumps(value))
        refused(shards, "model.extra.weight", "lacks")

    @pytest.mark.parametrize(
        "name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "", 7, "..", "x.py"]
    )
    def test_an_index_may_name_only_files_beside_it(self, shards, name):
        index = shards / "model.safetensors.index.json"
        value = json.loads(index.read_text())
        value["weight_map"]["model.norm.weight"] = name
        index.write_text(json.dumps(value))
        refused(shards, "index.json", "model.norm.weight")

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}'])
    def test_an_index_that_is_none(self, shards, text):
        (shards / "model.safetensors.index.json").write_text(text)
        refused(shards, "index.json")

    def test_missing_tensors_are_no_silent_random_numbers(self, copy):
        file = copy / "model.safetensors"
        tensors = load_file(file)
        del tensors["model.layers.2.mlp.up_proj.weight"]
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(RequestError, match=r"layers\.2\.mlp\.up_proj"):
            open_source(copy).load()

    def test_weights_of_another_config(self, copy):
        edit_json(copy / "config.json", intermediate_size=64)
        with pytest.raises(RequestError, match="doesn't load"):
            open_source(copy).load()

    @pytest.mark.parametrize(
        ("value", "said"), [(float("nan"), "2 NaN and 0"), (float("-inf"), "0 NaN and 2")]
    )
    def test_not_finite(self, copy, value, said):
        file = copy / "model.safetensors"
        tensors = load_file(file)
        open_source(copy).check_finite()
        tensors["model.layers.1.mlp.up_proj.weight"][5, 6:8] = value
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(RequestError, match=r"layers\.1\.mlp\.up_proj") as caught:
            open_source(copy).check_finite()
        assert said in caught.value.message

    def test_a_broken_tokenizer(self, copy):
        (copy / "tokenizer.json").write_text("{")
        with pytest.raises(RequestError, match="tokenizer"):
            open_source(copy).tokenizer()

    def test_no_tokenizer(self, copy):
        (copy / "tokenizer.json").unlink()
        (copy / "tokenizer_config.json").unlink()
        assert open_source(copy).tokenizer() is None


@pytest.mark.parametrize(
    ("kind", "options", "limit"),
    [
        ("Llama", {"max_position_embeddings": 77}, 77),
        ("GPT2", {"n_positions": 99}, 99),
        ("Roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ("Whisper", {"max_target_positions": 44}, 44),
        ("Llava", {}, 2048),  # the text model's, a llama by default
        ("T5", {}, None),
        ("Bloom", {}, None),
        ("Falcon", {"alibi": True}, None),
        ("Mamba", {}, None),
        ("Mpt", {}, None),
    ],
)
def test_token_limit(kind, options, limit):
    import transformers

    config = getattr(transformers, f"{kind}Config")(**options)
    assert Source("m", Path(), config, None, {}).token_limit() == limit


def test_a_really_trained_model(assets):
    source = open_source(assets / "models" / "stories260k")
    source.check_finite()
    tokens = source.tokenizer()("Once upon a time, there was a little girl", return_tensors="pt")
    with torch.no_grad():
        loss = source.load()(**tokens, labels=tokens["input_ids"]).loss
    assert loss < 3  # of ln 512 = 6.2 by chance
    assert source.token_limit() == 512


def test_the_shipped_model(demo_model):
    source = open_source(demo_model)
    source.check_finite()
    assert source.load().config.num_hidden_layers >= 8
    assert source.tokenizer() is not None
    assert source.bytes_on_disk() < 8e6
