"""Spectra shared by several processes: the same rows, files and counts as those of one."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from teams import in_ranks

import tiny_models
from compress.cli.main import call


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("moe") / "qwen2_moe"
    return tiny_models.make_checkpoint("qwen2_moe", place, dtype=torch.float32)


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_tell_what_one_process_tells(model, tmp_path, capfd, count, monkeypatch):
    more = ["--json", "--farms", "8,1,3", "--randomize"]
    place = lambda name: ["--csv", str(tmp_path / f"{name}.csv")]

    def run(name):
        """With an empty cache at first, then with a full one."""
        monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache" / name))
        argv = ["inspect", str(model), *more, *place(name)]
        if name == "one":
            return [call(argv) or capfd.readouterr().out for _ in range(2)]
        both = [in_ranks(count, lambda: call(argv), tmp_path / "said") for _ in range(2)]
        for ended in both:
            assert [e.code for e in ended] == [0] * count, ended
            assert [e.out + e.err for e in ended[1:]] == [""] * (count - 1)
        return [ended[0].out for ended in both]

    one, many = run("one"), run("many")
    assert many == one  # bytes of JSON
    matrices = json.loads(one[0])["model"]["matrices"]
    assert [json.loads(text)["cache"] for text in many] == [
        {"hits": 0, "misses": matrices},
        {"hits": matrices, "misses": 0},
    ]
    assert (tmp_path / "many.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_a_nan_that_another_rank_finds_is_told_by_the_first(model, tmp_path):
    place = tmp_path / "bad"
    place.mkdir()
    for file in model.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    tensors = load_file(place / "model.safetensors")
    last = max(name for name in tensors if "layers.3" in name and tensors[name].ndim == 2)
    tensors[last][0, 0] = float("nan")
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    ended = in_ranks(2, lambda: call(["inspect", str(place), "--no-cache"]), tmp_path / "said")
    assert [e.code for e in ended] == [2, 2]
    assert ended[0].err.count("error:") == 1
    assert "NaN" in ended[0].err
    assert last.removesuffix(".weight") in ended[0].err
    assert ended[1].err == ""
