"""Every wrong request: one line, exit code 2, nothing written. Failures of the machine: 3."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.cli.main import call
from tiny_models import make_checkpoint


@pytest.fixture
def model(checkpoint, tmp_path):
    """A copy of the tiny llama that a test may damage."""
    return shutil.copytree(checkpoint(), tmp_path / "model")


@pytest.fixture
def refused(tmp_path, text, capsys):
    """Run alpha-prune on a model, and check that it ends as a wrong request should."""

    def run(model, *argv, code=2, calib=None, out=None):
        out = tmp_path / "out" if out is None else out
        before = sorted(str(p) for p in tmp_path.rglob("*"))
        given = ["--calib", str(calib or text), "--samples", "4", "--seqlen", "32", *argv]
        capsys.readouterr()  # what making the checkpoint has printed
        assert call(["alpha-prune", str(model), "-o", str(out), *given]) == code
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert lines[0].startswith("error: ")
        assert len(lines) <= 4
        assert "Traceback" not in captured.err
        if code == 2:
            assert sorted(str(p) for p in tmp_path.rglob("*")) == before
        assert not (tmp_path / "out").exists() or out != tmp_path / "out"
        return captured.err

    return run


def edit_weights(model, change):
    file = model / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_no_such_directory(refused, tmp_path):
    assert "nowhere" in refused(tmp_path / "nowhere")


def test_a_directory_that_is_no_checkpoint(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(tmp_path / "empty")


def test_a_config_without_weights(refused, model):
    (model / "model.safetensors").unlink()
    assert "no weights" in refused(model)


def test_an_unknown_architecture(refused, model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "lama"}))
    err = refused(model)
    assert "lama" in err
    assert "llama" in err


def test_a_truncated_weight_file(refused, model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors" in refused(model)


def test_a_corrupt_weight_file(refused, model):
    (model / "model.safetensors").write_bytes(b"\xff" * 4096)
    assert "model.safetensors" in refused(model)


def test_a_missing_shard(refused, tmp_path):
    model = make_checkpoint("llama", tmp_path / "sharded", max_shard_size="20KB")
    shard = sorted(model.glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refused(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight"]
)
def test_a_weight_that_is_not_finite_is_named(name, value, refused, model):
    def change(tensors):
        tensors[name].view(-1)[3] = value

    edit_weights(model, change)
    assert name in refused(model)


def test_a_weight_of_another_shape(refused, model):
    def change(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(4, 4)

    edit_weights(model, change)
    assert "model.layers.1.mlp.up_proj" in refused(model)


def test_a_weight_that_is_missing(refused, model):
    edit_weights(model, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    assert "model.layers.1.mlp.up_proj" in refused(model)


@pytest.mark.parametrize("sparsity", ["1.0", "-0.1", "1.5", "nan"])
def test_a_sparsity_outside_its_range(sparsity, refused, model):
    assert "[0, 1)" in refused(model, "--sparsity", sparsity)


def test_a_sparsity_that_the_bounds_cannot_reach_says_the_range(refused, model):
    err = refused(model, "--sparsity", "0.9", "--max-sparsity", "0.8")
    assert "0.8" in err
    assert "--max-sparsity" in err


def test_a_pattern_that_does_not_divide_a_width(refused, model):
    err = refused(model, "--pattern", "4:7")
    assert "q_proj" in err
    assert "32 inputs" in err


def test_text_too_short_says_how_much_there_is(refused, model, tmp_path):
    (tmp_path / "short.txt").write_text("a few words only")
    err = refused(model, calib=tmp_path / "short.txt")
    assert "16 tokens" in err
    assert "128 tokens needed" in err


def test_an_empty_text(refused, model, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert "empty.txt" in refused(model, calib=tmp_path / "empty.txt")


def test_a_wrong_column_lists_the_right_ones(refused, model, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"body": "some words", "kind": "x", "n": 3}\n')
    err = refused(model, calib=f"{tmp_path / 't.jsonl'}:txt")
    assert "`txt`" in err
    assert "body" in err


def test_a_binary_file(refused, model, tmp_path):
    (tmp_path / "b.txt").write_bytes(bytes(range(256)) * 40)
    assert "b.txt" in refused(model, calib=tmp_path / "b.txt")


def test_a_sequence_above_the_models_limit(refused, model):
    err = refused(model, "--seqlen", "129")
    assert "129" in err
    assert "limit of 128" in err


def test_a_plan_of_another_model(refused, model, tmp_path, checkpoint):
    plan = tmp_path / "plan.json"
    assert call(["alpha-prune", str(model), "--method", "magnitude", "--dry-run", "--quiet",
                 "--plan-out", str(plan)]) == 0  # fmt: skip
    assert "another model" in refused(checkpoint("mistral"), "--plan", str(plan))


def test_a_plan_with_unknown_modules(refused, model, tmp_path):
    plan = tmp_path / "plan.json"
    assert call(["alpha-prune", str(model), "--method", "magnitude", "--dry-run", "--quiet",
                 "--plan-out", str(plan)]) == 0  # fmt: skip
    plan.write_text(plan.read_text().replace("layers.1.mlp.up_proj", "layers.1.mlp.upp_proj"))
    err = refused(model, "--plan", str(plan))
    assert "upp_proj" in err
    assert "did you mean" in err


def test_output_equal_to_the_input(refused, model):
    refused(model, out=model)
    refused(model, "--overwrite", out=model)


def test_an_output_that_is_not_empty(refused, model, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("x")
    assert "not empty" in refused(model, out=tmp_path / "full")


def test_an_unknown_task_suggests_near_ones(refused, model):
    err = refused(model, "--tasks", "arc_eazy")
    assert "arc_eazy" in err
    assert "arc_easy" in err


def test_a_hub_name_without_a_network(refused):
    err = refused("nobody/no-such-model-1b")
    assert "nobody/no-such-model-1b" in err
    assert "offline" in err.lower() or "network" in err.lower()


def test_a_hub_corpus_without_a_network(refused, model):
    err = refused(model, calib="c4")
    assert "c4" in err
    assert "demo" in err


def test_calibrating_on_the_evaluation_text(refused, model, text):
    assert "both" in refused(model, "--ppl", str(text))


def test_no_output(model, capsys):
    assert call(["alpha-prune", str(model)]) == 2
    assert "-o OUT" in capsys.readouterr().err


def test_a_device_that_is_not_there(refused, model):
    assert "`--device cuda:7`" in refused(model, "--device", "cuda:7")


def test_a_full_disk_ends_with_code_3_and_no_output(refused, model, monkeypatch):
    from compress.checkpoints import shards

    save, seen = shards.save_file, []

    def full(tensors, path, metadata=None):
        seen.append(path)
        if len(seen) == 3:
            raise OSError(28, "No space left on device")
        save(tensors, path, metadata=metadata)

    monkeypatch.setattr(shards, "save_file", full)
    err = refused(model, code=3)
    assert "space" in err
    assert "--resume" in err


def test_memory_that_runs_out_ends_with_code_3_and_can_be_resumed(
    refused, model, monkeypatch, tmp_path, text
):
    from compress.sparsity import pruner

    original, seen = pruner.Pruner.edit, []

    def hungry(self, block, names, weights):
        seen.append(block.name)
        if len(seen) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        original(self, block, names, weights)

    monkeypatch.setattr(pruner.Pruner, "edit", hungry)
    assert "out of memory" in refused(model, code=3)
    monkeypatch.setattr(pruner.Pruner, "edit", original)
    again = ["--calib", str(text), "--samples", "4", "--seqlen", "32", "--resume", "--quiet"]
    assert call(["alpha-prune", str(model), "-o", str(tmp_path / "out"), *again]) == 0


def test_an_activation_that_is_not_finite_ends_with_code_3_and_names_the_block(refused, model):
    def change(tensors):
        tensors["model.layers.1.mlp.down_proj.weight"] *= 1e38

    edit_weights(model, change)
    assert "model.layers.1" in refused(model, code=3)


def test_json_is_the_only_thing_on_stdout(model, tmp_path, text, capsys):
    argv = ["--calib", str(text), "--samples", "4", "--seqlen", "32", "--json"]
    assert call(["alpha-prune", str(model), "-o", str(tmp_path / "out"), *argv]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["status"] == "ok"
    assert data["plan"]["rows"] == 28


def test_quiet_says_nothing(model, tmp_path, text, capfd):
    argv = ["--calib", str(text), "--samples", "4", "--seqlen", "32", "--quiet"]
    assert call(["alpha-prune", str(model), "-o", str(tmp_path / "out"), *argv]) == 0
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_matrices_without_a_spectrum_get_a_defined_share_and_a_note(model, tmp_path, text, capsys):
    def change(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"].zero_()
        tensors["model.layers.2.mlp.up_proj.weight"].fill_(0.5)

    edit_weights(model, change)
    out = tmp_path / "out"
    argv = ["--calib", str(text), "--samples", "4", "--seqlen", "32", "--granularity", "matrix"]
    assert call(["alpha-prune", str(model), "-o", str(out), "--json", *argv]) == 0
    receipt = json.loads(capsys.readouterr().out)
    plan = json.loads((out / "plan.json").read_text())["rows"]
    size = sum(row["size"] for row in plan)
    assert sum(row["zeros"] for row in plan) == round(0.6 * size)
    notes = " ".join(receipt["notes"])
    assert "model.layers.1.mlp.up_proj" in notes
    assert "model.layers.2.mlp.up_proj" in notes
