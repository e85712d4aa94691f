"""`--format bitmask`: the same weights in smaller files, resumed and pruned again."""

import json
import os
import signal

import pytest
import torch

import compress
from compress.checkpoints.export import export
from compress.checkpoints.source import open_source
from compress.errors import RequestError


def files(place):
    """The files of an output, less the receipt, which holds times."""
    return {p.name: p.read_bytes() for p in place.iterdir() if p.name != "receipt.json"}


def weights(place):
    return compress.load(place).state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(other[name], value), name


@pytest.mark.parametrize("arch", ["llama", "mixtral", "gpt2"])
def test_bitmask_holds_the_weights_that_dense_holds(arch, checkpoint, prune, tmp_path):
    source = checkpoint(arch, torch.bfloat16)
    dense = prune(source, tmp_path / "dense", method="magnitude")
    packed = prune(source, tmp_path / "packed", method="magnitude", format="bitmask")
    assert_same(weights(tmp_path / "dense"), weights(tmp_path / "packed"))
    before, after = dense.receipt.after, packed.receipt.after
    assert (after.parameters, after.nonzero) == (before.parameters, before.nonzero)
    assert after.bytes < 0.75 * before.bytes
    notes = json.loads((tmp_path / "packed" / "receipt.json").read_text())["notes"]
    assert "import compress" in notes[0]
    assert not any("as large as before" in note for note in notes)
    assert any("as large as before" in note for note in dense.receipt.notes)
    export(tmp_path / "packed", tmp_path / "back")
    file = "model.safetensors"
    assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "dense" / file).read_bytes()


def test_the_sizes_of_the_packed_matrices(checkpoint, prune, tmp_path):
    options = {"sparsity": None, "pattern": "2:4", "format": "bitmask"}
    result = prune(checkpoint("llama", torch.bfloat16), tmp_path / "out", **options)
    stored = open_source(tmp_path / "out")
    for row in result.plan.rows:
        pair = [stored.tensors[f"{row['module']}.weight_{part}"] for part in ("values", "mask")]
        size = sum(t.numel * t.dtype.itemsize for t in pair)
        assert size == (0.5 + 1 / 16) * 2 * row["size"]


@pytest.mark.parametrize("kill", ["prune", "lay out"])
def test_a_killed_run_resumes_to_the_same_bytes(kill, checkpoint, prune, tmp_path):
    source = checkpoint("llama", torch.bfloat16)
    options = {"method": "wanda", "format": "bitmask"}
    prune(source, tmp_path / "alone", **options)
    child = os.fork()
    if not child:

        def progress(task, done, total, note=""):
            if task == kill and done == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        torch.set_num_threads(torch.get_num_threads())  # renew torch's pool, which a fork breaks
        try:
            prune(source, tmp_path / "out", progress=progress, **options)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not (tmp_path / "out").exists()
    prune(source, tmp_path / "out", resume=True, **options)
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("arch", ["llama", "mixtral"])
def test_a_packed_checkpoint_is_pruned_like_the_dense_one(arch, checkpoint, prune, tmp_path):
    source = checkpoint(arch, torch.bfloat16)
    for form in ("dense", "bitmask"):
        prune(source, tmp_path / form, sparsity=0.3, method="magnitude", format=form)
    wanted = prune(tmp_path / "dense", tmp_path / "wanted", sparsity=0.6)
    for form in ("dense", "bitmask"):
        found = prune(tmp_path / "bitmask", tmp_path / f"to {form}", sparsity=0.6, format=form)
        assert_same(weights(tmp_path / "wanted"), weights(tmp_path / f"to {form}"))
        assert found.receipt.after.nonzero == wanted.receipt.after.nonzero
        edited = "quantization_config" in json.loads(
            (tmp_path / f"to {form}" / "config.json").read_text()
        )
        assert edited == (form == "bitmask")
    assert (tmp_path / "to dense" / "model.safetensors").read_bytes() == (
        tmp_path / "wanted" / "model.safetensors"
    ).read_bytes()


def test_too_few_zeros_stay_dense_and_it_is_said(checkpoint, prune, tmp_path):
    result = prune(
        checkpoint("llama", torch.bfloat16),
        tmp_path / "out",
        sparsity=0.01,
        method="magnitude",
        allocation="uniform",
        format="bitmask",
    )
    assert "no matrix has enough zeros" in result.receipt.notes[0]
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_another_dtype_in_out(checkpoint, prune, tmp_path):
    options = {"method": "magnitude", "dtype": "bfloat16"}
    for form in ("dense", "bitmask"):
        prune(checkpoint("llama"), tmp_path / form, format=form, **options)
    assert open_source(tmp_path / "bitmask").dtype == torch.bfloat16
    assert_same(weights(tmp_path / "dense"), weights(tmp_path / "bitmask"))


def test_an_unknown_format_names_those_there_are(checkpoint, prune, tmp_path):
    with pytest.raises(RequestError, match="`--format bitmsk`") as caught:
        prune(checkpoint(), tmp_path / "out", format="bitmsk")
    assert "`bitmask`" in caught.value.hint
