"""Branches of one walk: each bit for bit what a walk of its own gives, with less work."""

import pytest
import torch

from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer, walk
from compress.sparsity.branches import Branch, Branches
from compress.sparsity.pruner import STREAM, Pruner, Target
from tests.tiny_models import make_checkpoint


def targets_of(source, share):
    matrices = read_anatomy(skeleton(source)).matrices
    return {m.name: Target(round(share * m.shape[0] * m.shape[1])) for m in matrices}


def branches_of(source):
    return {
        "wanda-50": Branch(targets_of(source, 0.5), "wanda"),
        "wanda-70": Branch(targets_of(source, 0.7), "wanda"),
        "sparsegpt-50": Branch(targets_of(source, 0.5), "sparsegpt", {"block_size": 16}),
        "magnitude": Branch(targets_of(source, 0.5), "magnitude"),
        "refitted": Branch(targets_of(source, 0.5), "wanda", {"refit": "exact"}),
    }


def written(writer):
    return {(part, name): t for part in writer.parts() for name, t in writer.read(part).items()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe"])
def test_each_branch_equals_a_walk_of_its_own(tmp_path, family):
    source = open_source(make_checkpoint(family, tmp_path / "model"))
    torch.manual_seed(1)
    batches = [{"input_ids": torch.randint(4, 100, (2, 12))} for _ in range(3)]
    branches = branches_of(source)
    writers = {s: open_writer(tmp_path / s, source) for s in branches}
    together = walk(source, batches, Branches(branches), writers, streams=list(branches))
    passes = 0.0
    for stream, branch in branches.items():
        alone = open_writer(tmp_path / "alone" / stream, source)
        pruner = Pruner(branch.targets, branch.method, **branch.options)
        passes += walk(source, batches, pruner, alone, streams=(STREAM,)).passes
        expected, found = written(alone), written(writers[stream])
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), stream
    assert together.passes < passes  # the first block is collected once for all


def test_equal_branches_run_as_one(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path / "model"))
    batches = [{"input_ids": torch.randint(4, 100, (2, 12))}]
    branch = Branch(targets_of(source, 0.5), "wanda")
    one = walk(source, batches, Branches({"a": branch}), streams=("a",))
    two = walk(source, batches, Branches({"a": branch, "b": branch}), streams=("a", "b"))
    assert one.passes == two.passes


def test_stages_of_their_own_are_refused(tmp_path):
    with pytest.raises(ValueError, match="branch `a`"):
        Branches({"a": Branch({}, "wanda", {"true_sequential": True})})
