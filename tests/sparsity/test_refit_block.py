"""A block refitted to its dense output: never worse, masks kept, the same twice, padding unseen."""

import json

import pytest
import torch

import compress
from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer, walk
from compress.errors import RequestError
from compress.sparsity.pruner import STREAM, Pruner, Target
from compress.sparsity.refit_block import DENSE, BlockRefit, split
from tiny_models import make_batch

OPTIONS = {"refit": "block", "refit_steps": 30, "refit_lr": 0.05, "samples": 12}


def weights(place):
    return compress.load(place).state_dict()


def errors(result):
    return [note for note in result.receipt.notes if note.startswith("refit block")]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "mixtral"])
def test_masks_stay_the_rest_of_the_model_too_and_the_outputs_come_nearer(
    arch, checkpoint, prune, tmp_path
):
    plain = prune(checkpoint(arch), tmp_path / "plain", samples=12)
    result = prune(checkpoint(arch), tmp_path / "out", **OPTIONS)
    assert result.receipt.after.nonzero == plain.receipt.after.nonzero
    dense, before, after = (
        weights(p) for p in (checkpoint(arch), tmp_path / "plain", tmp_path / "out")
    )
    touched = {n for n in before if not torch.equal(before[n], dense[n])}
    for name in before:
        if name not in touched:
            assert torch.equal(after[name], dense[name]), name
    first = [n for n in touched if ".0." in n and "experts" not in n]
    assert first
    for name in first:  # the first block's inputs, hence its masks, are those without a refit
        assert torch.equal(after[name] == 0, before[name] == 0), name
        assert not torch.equal(after[name], before[name])
    (told,) = errors(result)
    pairs = [part.split(" to ") for part in told.split("by block: ")[1].split(")")[0].split(", ")]
    assert len(pairs) == 4
    assert all(float(b) < float(a) for a, b in pairs)
    with torch.no_grad():
        models = [
            compress.load(p) for p in (checkpoint(arch), tmp_path / "plain", tmp_path / "out")
        ]
        wanted, unfit, fit = (
            m(**make_batch(rows=6, seed=3), output_hidden_states=True).hidden_states[-1]
            for m in models
        )
    assert float((fit - wanted).square().sum()) < float((unfit - wanted).square().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_that_only_harm_leave_the_values(dtype, checkpoint, prune, tmp_path):
    source = checkpoint("llama", dtype)
    wild = {**OPTIONS, "refit_lr": 1e5, "refit_steps": 3}
    prune(source, tmp_path / "plain", samples=12, dtype="float32")
    result = prune(source, tmp_path / "out", dtype="float32", **wild)
    before, after = weights(tmp_path / "plain"), weights(tmp_path / "out")
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert "4 of 4 keep their values" in errors(result)[0]


def test_two_runs_give_the_same_bytes_and_another_seed_others(checkpoint, prune, tmp_path):
    for place, seed in (("one", 0), ("two", 0), ("three", 5)):
        prune(checkpoint(), tmp_path / place, seed=seed, **OPTIONS)
    one, two, three = (
        (tmp_path / p / "model.safetensors").read_bytes() for p in ("one", "two", "three")
    )
    assert one == two != three


def test_a_resumed_run_gives_the_same_bytes_and_tells_all_blocks(checkpoint, prune, tmp_path):
    class Stop(Exception):
        pass

    def progress(task, done, total, note=""):
        if task == "prune" and done == 2:
            raise Stop

    whole = prune(checkpoint(), tmp_path / "whole", **OPTIONS)
    with pytest.raises(Stop):
        prune(checkpoint(), tmp_path / "out", progress=progress, **OPTIONS)
    resumed = prune(checkpoint(), tmp_path / "out", resume=True, **OPTIONS)
    one, two = ((tmp_path / p / "model.safetensors").read_bytes() for p in ("whole", "out"))
    assert one == two
    assert errors(whole) == errors(resumed)
    kept = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert kept["settings"]["refit_steps"] == 30


def walked(path, out, batches):
    """Weights of the walk with a refit of every block, and its errors."""
    source = open_source(path)
    names = [n.removesuffix(".weight") for n in source.tensors if "layers" in n and "proj" in n]
    targets = {n: Target(source.tensors[f"{n}.weight"].numel // 2) for n in names}
    method = Pruner(targets, "magnitude", block_refit=BlockRefit(20, 0.05))
    writer = open_writer(out / "parts", source)
    walk(source, batches, method, writer, streams=(STREAM, DENSE))
    writer.join(out)
    (out / "config.json").write_bytes((path / "config.json").read_bytes())
    return weights(out), method.notes()


def test_what_stands_in_padding_is_not_learned_from(checkpoint, tmp_path):
    batches = [make_batch(rows=3, seed=s, padded=True) for s in range(6)]
    other = []
    for batch in batches:
        changed = dict(batch)
        noise = torch.randint(4, 100, batch["input_ids"].shape)
        changed["input_ids"] = torch.where(batch["attention_mask"] == 0, noise, batch["input_ids"])
        other.append(changed)
    assert any(not torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, other))
    (one, told), (two, same) = (
        walked(checkpoint(), tmp_path / place, given)
        for place, given in (("a", batches), ("b", other))
    )
    assert all(torch.allclose(one[n], two[n], atol=1e-5) for n in one)
    assert len(told) == len(same) == 1


def test_the_target_is_the_dense_model_not_the_dense_block_on_pruned_inputs(checkpoint, tmp_path):
    # Only block 0 is pruned hard; block 1 loses one weight and can still make up for block 0.
    source = open_source(checkpoint())
    names = [n.removesuffix(".weight") for n in source.tensors if "layers" in n and "proj" in n]
    size = {n: source.tensors[f"{n}.weight"].numel for n in names}
    targets = {n: Target(size[n] * 7 // 10 if ".0." in n else 1) for n in names}
    method = Pruner(targets, "magnitude", block_refit=BlockRefit(40, 0.05))
    batches = [make_batch(rows=3, seed=s) for s in range(8)]
    walk(source, batches, method, streams=(STREAM, DENSE))
    found = method.notes()[0].split("by block: ")[1].split(", ")[1]
    before, after = (float(x.rstrip(")")) for x in found.split(" to "))
    assert before > 0.01  # on pruned inputs one weight would cost next to nothing
    assert after < 0.9 * before


def test_batches_are_split_for_good():
    assert split(range(2)) == ([0], [1])
    train, held = split(range(30))
    assert held == [9, 19, 29]
    assert sorted(train + held) == list(range(30))
    with pytest.raises(ValueError, match="needs 2 batches, not 1"):
        split([0])


def test_what_it_cannot_do_is_refused(checkpoint, prune, tmp_path):
    with pytest.raises(RequestError, match=r"`--refit block`.*1 is too few, 2 needed"):
        prune(checkpoint(), tmp_path / "out", refit="block", samples=4, batch_size=4)
    with pytest.raises(RequestError, match=r"`--refit block` runs blocks again.*dense"):
        prune(checkpoint(), tmp_path / "out", refit="block", propagate="dense")
    for wrong in ({"refit_steps": 0}, {"refit_lr": 0.0}, {"refit_lr": float("nan")}):
        with pytest.raises(RequestError, match="--refit-"):
            prune(checkpoint(), tmp_path / "out", refit="block", **wrong)
