"""`pass-prune` from a checkpoint and a folder of pictures to a checkpoint and a receipt."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

from compress.channels.command import pass_prune
from compress.channels.settings import PruneSettings
from compress.cli.main import call
from compress.data.images import read_processing
from compress.errors import RequestError
from tests.channels.families import build


def pictures(place, classes=5, count=16, side=32, seed=0):
    """Class folders of noise around a colour of the class's own."""
    random = np.random.default_rng(seed)
    for label in range(classes):
        folder = place / f"LABEL_{label}"
        folder.mkdir(parents=True)
        for number in range(count):
            noise = random.integers(0, 120, (side, side, 3))
            noise[..., label % 3] += 20 * label
            Image.fromarray(noise.clip(0, 255).astype("uint8")).save(folder / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("pictures") / "all")


def checkpoint(place, family, side=32):
    build(family, dtype=torch.float32).save_pretrained(place)
    read_processing(None, side).save(place)
    return place


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("resnet"), "resnet-bottleneck")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("vit"), "vit")


@pytest.fixture(autouse=True)
def short_timings(monkeypatch):
    monkeypatch.setattr("compress.channels.measuring._ROUNDS", 2)
    monkeypatch.setattr("compress.channels.measuring._SECONDS", 1e-4)


FAST = {"method": "l1", "keep": 0.5, "batch_size": 16, "calib_samples": 32, "round_to": 1}


@pytest.fixture(scope="module")
def done(resnet, data, tmp_path_factory):
    place = tmp_path_factory.mktemp("out") / "half"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compress.channels.measuring._ROUNDS", 2)
        result = pass_prune(resnet, place, data=str(data), baselines=("random",), **FAST)
    return place, result


def test_receipt_tells_before_and_after(done, data):
    _, result = done
    receipt = result.as_dict()
    before, after = receipt["before"], receipt["after"]
    found = receipt["channels"]
    assert 0.45 < after["macs"] / before["macs"] <= 0.5
    assert found["macs_by_formula"] == found["macs_by_counter"] == [before["macs"], after["macs"]]
    assert after["parameters"] < before["parameters"]
    assert after["bytes"] < before["bytes"]
    for side in (before, after):
        assert set(side["latency"]) == set(side["latency_iqr"]) == {"batch_1_s", "batch_64_s"}
        (score,) = side["accuracy"].values()
        assert {"top1", "top5", "stderr", "n"} <= set(score)
    assert set(found["methods"]) == {"l1", "random"}
    for arm in found["methods"].values():
        assert arm["macs"] <= 0.5
        assert set(arm) >= {"cut", "repaired", "removal"}
        assert arm["removal"]["exact"]
        assert arm["removal"]["difference"] < 1e-4
    assert receipt["comparison"]["accuracy"]


def test_files_and_that_strangers_cannot_open_them(done):
    place, result = done
    names = {file.name for file in place.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "plan.json",
            "receipt.json", "widths.png"} <= names  # fmt: skip
    ours = AutoModelForImageClassification.from_pretrained(place)
    assert sum(p.numel() for p in ours.parameters()) < result.receipt.before.parameters
    code = (
        "from transformers import ResNetForImageClassification as Stock\n"
        f"Stock.from_pretrained({str(place)!r})\n"
    )
    strangers = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert strangers.returncode != 0
    assert "mismatch" in strangers.stderr.lower()


def test_same_seed_same_plan_whatever_the_batch(resnet, data, tmp_path):
    digests = {
        name: pass_prune(
            resnet, dry_run=True, data=str(data), **{**FAST, "method": name, **change}
        ).plan.digest()
        for name, change in (("l1", {}), ("l2", {}), ("random", {}))
    }
    again = pass_prune(resnet, dry_run=True, data=str(data), **{**FAST, "batch_size": 7})
    assert again.plan.digest() == digests["l1"]
    other = pass_prune(resnet, dry_run=True, data=str(data), **{**FAST, "method": "random"}, seed=1)
    assert other.plan.digest() != digests["random"]
    assert not list(tmp_path.iterdir())


def test_a_plan_is_used_again(resnet, data, tmp_path, done):
    _, first = done
    file = tmp_path / "plan.json"
    pass_prune(resnet, dry_run=True, plan_out=file, data=str(data), **FAST)
    result = pass_prune(resnet, tmp_path / "out", plan=file, **{**FAST, "repair": "none"})
    assert result.plan.digest() == first.plan.digest()
    assert result.model is None
    rows = json.loads(file.read_text())
    rows["rows"][0]["keep"] = [0, 0]
    file.write_text(json.dumps(rows))
    with pytest.raises(RequestError, match="doesn't say which of its"):
        pass_prune(resnet, tmp_path / "out2", plan=file, **{**FAST, "repair": "none"})
    assert not (tmp_path / "out2").exists()


def test_without_images_nothing_is_scored(vit):
    result = pass_prune(vit, **{**FAST, "repair": "none"})
    assert "accuracy" not in result.as_dict()["after"]
    assert sum(p.numel() for p in result.model.parameters()) < result.receipt.before.parameters


def test_a_transformer_cut_uniformly_is_stock(vit, tmp_path):
    options = {"method": "l1", "ratio": 0.5, "repair": "none", "round_to": 1}
    result = pass_prune(vit, tmp_path / "out", **options)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["num_attention_heads"], config["head_dim"]) == (2, 4)
    assert config["intermediate_size"] == 24
    assert result.as_dict()["channels"]["form"] == "stock"


def test_streams_are_told_to_be_inexact(vit):
    result = pass_prune(vit, **{**FAST, "repair": "none"}, prune=("streams",), keep_params=None)
    removal = result.as_dict()["channels"]["methods"]["l1"]["removal"]
    assert not removal["exact"]
    assert removal["difference"] > 1e-3
    assert any("removal is not masking" in note for note in result.receipt.notes)


def test_least_squares_and_parameters_as_budget(resnet, data):
    options = {**FAST, "keep": None, "keep_params": 0.6, "repair": "lsq"}
    result = pass_prune(resnet, data=str(data), **options)
    receipt = result.as_dict()
    assert receipt["after"]["parameters"] <= 0.61 * receipt["before"]["parameters"]
    fit = receipt["channels"]["methods"]["l1"]["least_squares"]
    assert fit["refitted_error"] < fit["dropped_error"]


def test_a_latency_is_searched(resnet, monkeypatch):
    """With a clock that tells multiply-adds, the largest network that is fast enough is found."""
    from compress.channels import costs, selecting
    from compress.channels.measuring import Latency, Timing

    def timed(models, example, batches=(64,), **options):
        return [
            Latency({n: Timing(costs.counted_macs(m, example), 0.0) for n in batches}, 0)
            for m in models
        ]

    monkeypatch.setattr(selecting, "time_networks", timed)
    options = {**FAST, "keep": None, "repair": "none"}
    result = pass_prune(resnet, target_latency="2x", **options)
    macs = [result.as_dict()[side]["macs"] for side in ("before", "after")]
    assert 2.0 <= macs[0] / macs[1] < 2.2
    with pytest.raises(RequestError, match=r"at its floor the network is \d+"):
        pass_prune(resnet, target_latency="5000x", **options)


def test_a_killed_run_goes_on_to_the_same_bytes(resnet, data, tmp_path, monkeypatch, done):
    from compress.channels import command

    place, _ = done
    options = {"data": str(data), "baselines": ("random",), **FAST}

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_baselines", killed)
    with pytest.raises(KeyboardInterrupt):
        pass_prune(resnet, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    with pytest.raises(RequestError, match=r"can't resume: `options\.keep`"):
        pass_prune(resnet, tmp_path / "out", resume=True, **{**options, "keep": 0.4})
    monkeypatch.setattr("compress.channels.arms.scores_of", killed, raising=True)
    with pytest.raises(KeyboardInterrupt):  # the baseline still has to be scored, the method not
        pass_prune(resnet, tmp_path / "out", resume=True, **options)
    monkeypatch.undo()
    pass_prune(resnet, tmp_path / "out", resume=True, **options)
    for name in ("model.safetensors", "config.json", "plan.json", "items.json"):
        assert (tmp_path / "out" / name).read_bytes() == (place / name).read_bytes(), name


def test_the_door_prints_the_receipt_as_json(resnet, data, tmp_path, capsys):
    line = ["pass-prune", str(resnet), "-o", str(tmp_path / "out"), "--method", "bn",
            "--keep", "0.6", "--data", str(data), "--calib-samples", "16",
            "--batch-size", "16", "--json"]  # fmt: skip
    assert call(line) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert receipt["command"] == "pass-prune"
    assert receipt == json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert "no search: l1" in _rendered(tmp_path / "out")


def _rendered(place):
    from compress.channels.result import methods_table
    from compress.reports.receipt import Receipt

    return methods_table(Receipt.read(place))


WRONG = {
    "no budget": (["--keep", ""], "no budget is given"),
    "two budgets": (["--keep-params", "0.5"], "are two budgets"),
    "share": (["--keep", "1.5"], "isn't a share"),
    "method": (["--method", "l3"], "`--method l3` isn't one of its names"),
    "scope": (["--scope", "local"], "`--scope local`"),
    "kind": (["--prune", "chanels"], "`--prune chanels`"),
    "repair": (["--repair", "glue"], "`--repair glue`"),
    "baseline": (["--baselines", "l1,x"], "`--baselines x`"),
    "needs data": (["--method", "taylor"], "`--method taylor` needs labelled images"),
    "rounding": (["--round-to", "0"], "`--round-to 0` is less than 1"),
    "floor": (["--min-keep", "2"], "`--min-keep 2` isn't a share"),
    "unreachable": (["--keep", "0.01"], "can't be reached"),
    "heads of a resnet": (["--prune", "heads"], "nothing of the kinds heads"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_one_line(case, resnet, tmp_path, capsys):
    change, said = WRONG[case]
    given = {"--keep": "0.5", "--method": "l1", "--repair": "none"}
    given.update(dict([change]))
    line = [word for option, value in given.items() if value for word in (option, value)]
    assert call(["pass-prune", str(resnet), "-o", str(tmp_path / "out"), *line]) == 2
    error = capsys.readouterr().err
    assert said in error.splitlines()[0]
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_text_model_is_refused_by_its_class(tmp_path, capsys):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, vocab_size=16)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    line = ["pass-prune", str(tmp_path / "llama"), "-o", str(tmp_path / "out"), "--keep", "0.5",
            "--method", "l1", "--repair", "none"]  # fmt: skip
    assert call(line) == 2
    assert "`LlamaForCausalLM`; pass-prune cuts image classifiers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("build_data", "said"),
    [
        (lambda place: pictures(place, side=2), "smaller than the network's stride"),
        (lambda place: pictures(place, classes=7), "--new-head"),
    ],
)
def test_images_that_do_not_suit_the_network(build_data, said, vit, tmp_path, capsys, resnet):
    model = tmp_path / "model"
    checkpoint(model, "resnet-bottleneck", side=2 if "stride" in said else 32)
    build_data(tmp_path / "images")
    line = ["pass-prune", str(model), "-o", str(tmp_path / "out"), "--keep", "0.5", "--method",
            "l1", "--data", str(tmp_path / "images")]  # fmt: skip
    assert call(line) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_faults_of_the_options_are_told_at_once():
    with pytest.raises(RequestError) as caught:
        PruneSettings(method="l3", repair="glue", min_keep=3).resolved()
    for word in ("l3", "glue", "min-keep", "no budget"):
        assert word in caught.value.message


def test_a_timm_model_without_timm_is_one_line(tmp_path, resnet, capsys):
    import transformers

    if transformers.utils.is_timm_available():
        pytest.skip("timm is installed")
    config = {"model_type": "timm_wrapper", "architecture": "resnet18", "num_classes": 5,
              "architectures": ["TimmWrapperForImageClassification"]}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = ["pass-prune", str(tmp_path), "-o", str(tmp_path / "out"), "--keep", "0.5"]
    assert call([*line, "--method", "l1", "--repair", "none"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "requires the timm library, which isn't installed" in said[0]
