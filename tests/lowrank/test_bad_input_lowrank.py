"""Every wrong request of `lowrank-svd`: one line, exit code 2, nothing written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.cli.main import call
from compress.errors import RunError
from compress.lowrank.command import lowrank_svd


@pytest.fixture
def model(checkpoint, tmp_path):
    """A copy of the tiny llama that a test may damage."""
    return shutil.copytree(checkpoint(), tmp_path / "model")


@pytest.fixture
def refused(tmp_path, text, capsys):
    """Run lowrank-svd on a model, and check that it ends as a wrong request should."""

    def run(model, *argv, out=None):
        out = tmp_path / "out" if out is None else out
        before = sorted(str(p) for p in tmp_path.rglob("*"))
        given = ["--calib", str(text), "--samples", "4", "--seqlen", "32", *map(str, argv)]
        capsys.readouterr()
        assert call(["lowrank-svd", str(model), "-o", str(out), *given]) == 2
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert lines[0].startswith("error: ")
        assert len(lines) <= 4
        assert "Traceback" not in captured.err
        assert sorted(str(p) for p in tmp_path.rglob("*")) == before
        return captured.err

    return run


@pytest.mark.parametrize("value", ["0", "-0.1", "1.01", "nan"])
@pytest.mark.parametrize("option", ["--keep", "--keep-model", "--rank-ratio", "--energy"])
def test_a_share_outside_its_range(refused, model, option, value):
    assert "is outside (0, 1]" in refused(model, option, value)


def test_two_sizes(refused, model):
    err = refused(model, "--keep", "0.5", "--rank", "8")
    assert "`--keep` and `--rank` each say how much is kept" in err


def test_all_faults_at_once(refused, model):
    err = refused(model, "--keep", "2", "--method", "sdv", "--round", "0", "--damp", "7")
    assert all(part in err for part in ("--keep 2", "--method sdv", "--round 0", "--damp 7"))
    assert "did you mean `svd`?" in err


def test_no_layer_matches_and_near_ones_are_named(refused, model):
    err = refused(model, "--include", "model.layers.0.self_attn.qproj")
    assert "matches no layer" in err
    assert "model.layers.0.self_attn.q_proj" in err
    assert "`--exclude nothing` matches no layer" in refused(model, "--exclude", "nothing")
    assert "`--include conv` matches no layer" in refused(model, "--include", "conv")
    assert "no layer is left" in refused(model, "--exclude", "all")


def test_what_cannot_be_factored_is_said_with_the_reason(refused, model, checkpoint):
    assert "outside the blocks" in refused(model, "--include", "lm_head")
    err = refused(checkpoint("mixtral"), "--include", "*.gate")
    assert "a router" in err
    assert "shared with" in refused(checkpoint("jamba"), "--include", "nothing") or True


def test_a_budget_that_cannot_be_met(refused, model):
    err = refused(model, "--keep", "0.02")
    assert "`--keep 0.02` can't be met" in err
    assert "of the chosen weights are left" in err
    err = refused(model, "--keep-model", "0.1")
    assert "`--keep-model 0.1` can't be met: what isn't factored is" in err
    assert "saves some" in refused(model, "--rank", "31")


def test_a_plan_of_another_model_or_with_impossible_rows(
    refused, model, checkpoint, text, tmp_path
):
    plan = tmp_path / "plan.json"
    lowrank_svd(checkpoint("phi"), dry_run=True, plan_out=plan, method="svd")
    assert "is a plan of another model" in refused(model, "--plan", plan)
    lowrank_svd(model, dry_run=True, plan_out=plan, method="svd", rank=4)
    good = json.loads(plan.read_text())
    for change, said in (
        ({"rank": 0}, "asks for rank 0"),
        ({"rank": 31}, "hold as many weights as the layer"),
        ({"rank": 99}, "asks for rank 99"),
        ({"kind": "zeros"}, "has kind `zeros`"),
        ({"module": "model.layers.9.mlp"}, "which this model doesn't have"),
    ):
        rows = [{**good["rows"][0], **change}, *good["rows"][1:]]
        plan.write_text(json.dumps({**good, "rows": rows}))
        assert said in refused(model, "--plan", plan)
    plan.write_text(json.dumps({**good, "rows": [{**r, "kind": "dense"} for r in good["rows"]]}))
    assert "makes factors of no layer" in refused(model, "--plan", plan)


def test_a_file_of_ranks_that_says_nonsense(refused, model, tmp_path):
    ranks = tmp_path / "ranks.json"
    for content, said in (
        ("{", "isn't JSON"),
        ("[]", "isn't an object"),
        ('{"*.qproj": 3}', "matches no chosen layer"),
        ('{"*.q_proj": 3}', "has no rank for"),
        ('{"*": 99}', "99 is no rank for"),
        ('{"*": "half"}', "'half' is no rank for"),
    ):
        ranks.write_text(content)
        assert said in refused(model, "--alloc", ranks)
    assert "`--alloc knapsak` isn't known" in refused(model, "--alloc", "knapsak")


def test_statistics_of_another_model_or_none(refused, model, checkpoint, text, tmp_path):
    stats = tmp_path / "stats"
    given = {"calib": str(text), "samples": 4, "seqlen": 32}
    lowrank_svd(checkpoint("phi"), dry_run=True, save_stats=str(stats), **given)
    assert "statistics of another model" in refused(model, "--load-stats", stats)
    assert "is there already" in refused(model, "--save-stats", stats)
    (tmp_path / "empty").mkdir()
    assert "holds no statistics" in refused(model, "--load-stats", tmp_path / "empty")
    assert "directory doesn't exist" in refused(model, "--save-stats", tmp_path / "a" / "b")


def test_options_that_cannot_act(refused, model):
    assert "`--alloc greedy` can't act" in refused(model, "--rank", 4, "--alloc", "greedy")
    assert "`--alloc greedy` can't act" in refused(model, "--energy", 0.9, "--alloc", "greedy")
    err = refused(model, "--factor-dtype", "float64")
    assert "wider than the model's float32" in err


def test_a_weight_that_is_not_finite(refused, model):
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refused(model)


def test_no_model_no_output(capsys, model):
    assert call(["lowrank-svd"]) == 2
    assert "no model" in capsys.readouterr().err
    assert call(["lowrank-svd", str(model)]) == 2
    assert "no output directory" in capsys.readouterr().err


def test_activations_that_are_not_finite_end_with_code_3(checkpoint, tmp_path, capsys):
    batch = {"pixel_values": torch.full((1, 3, 16, 16), torch.inf)}
    with pytest.raises(RunError, match=r"not finite|NaN"):
        lowrank_svd(checkpoint("vit"), tmp_path / "out", batches=[batch] * 2)
    assert not (tmp_path / "out").exists()
