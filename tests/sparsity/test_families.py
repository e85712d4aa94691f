"""Every model family through prune, save and plain load, and an audit that nothing was missed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from families import FAMILIES, build, make_batches
from families_page import PAGE, REFUSED, row_of
from walk_methods import leaves

import compress.sparsity.apply
from compress.checkpoints.anatomy import matrix_view, read_anatomy
from compress.checkpoints.audit import unexplained, unlisted, weight_uses
from compress.errors import RequestError
from compress.sparsity.command import alpha_prune

# Weights that change themselves at the first forward can't be compared, so they are kept still.
STILL = {"rwkv": {"rescale_every": 0}}
MIXTURES = {
    "llama4_text", "llama4", "mixtral", "phimoe", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo",
    "ernie4_5_moe", "afmoe", "hunyuan_v1_moe", "minimax", "minimax_m2", "granitemoe",
    "granitemoeshared", "glm4_moe", "dots1", "deepseek_v2", "deepseek_v3", "deepseek_v4",
    "glm4_moe_lite", "lfm2_moe", "longcat_flash", "jetmoe", "gpt_oss", "nemotron_h", "qwen3_next",
    "qwen3_5_moe_text", "qwen3_5_moe", "kimi_linear", "jamba", "granitemoehybrid", "nllb-moe",
    "switch_transformers",
}  # fmt: skip


@pytest.fixture
def walked(monkeypatch):
    """What the pruning walk reports, and what the pruned model in its memory returns."""
    found: dict = {"outputs": {}}
    plain = compress.sparsity.apply.walk

    def spy(*args, **kwargs):
        def keep(stream, batch, output):
            found["outputs"][batch] = leaves(output[0])

        found["report"] = plain(*args, **kwargs, on_output=keep)
        return found["report"]

    monkeypatch.setattr(compress.sparsity.apply, "walk", spy)
    return found


def aligned(model):
    """Copy weights out of the mapped file: kernels choose by address, down to the last bit."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()


def outputs(model, batches):
    with torch.no_grad():
        return [leaves(model(**batch)[0]) for batch in batches]


def run(kind, place):
    """Prune a family by Wanda to one half; return (dense model, batches, result)."""
    model, batches = build(kind), make_batches(kind)
    model.save_pretrained(place / "in")
    result = alpha_prune(
        place / "in",
        place / "out",
        method="wanda",
        sparsity=0.5,
        allocation="uniform",
        batches=batches,
    )
    return model, batches, result


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind not in REFUSED])
def test_prune_save_load(kind, tmp_path, walked):
    model, batches, result = run(kind, tmp_path)
    plain = type(model).from_pretrained(tmp_path / "out", **STILL.get(kind, {}))
    loaded = aligned(plain)
    for index, got in enumerate(outputs(loaded, batches)):
        kept = walked["outputs"][index]
        assert len(got) == len(kept) > 0
        assert all(torch.equal(one, two) for one, two in zip(got, kept, strict=True))

    dense = aligned(type(model).from_pretrained(tmp_path / "in", **STILL.get(kind, {})))
    anatomy = read_anatomy(dense)
    uses = weight_uses(dense, batches)
    assert uses
    assert unlisted(anatomy, uses) == []
    assert unexplained(dense, loaded, anatomy, walked["report"].untouched) == []
    rows = result.plan.rows
    assert sum(r["zeros"] for r in rows) == round(0.5 * sum(r["size"] for r in rows))
    check_notes(result.receipt.notes, anatomy, uses)
    if kind in MIXTURES:
        check_mixture(dense, loaded, anatomy)
    assert row_of(kind, anatomy) in PAGE.read_text(encoding="utf-8").splitlines()


def check_notes(notes, anatomy, uses):
    """Assert that what was pruned without data had none: unused, or an expert without tokens."""
    shared = {why for block in anatomy.blocks for _, why in block.skipped if "tied" in why}
    for note in notes:
        name, _, rest = note.partition(": ")
        if "no calibration token" in rest:
            matrix = anatomy.matrix(name)
            later = f"tied to `{matrix.parameter}`" in shared  # used in later blocks only
            assert matrix.expert is not None or later or matrix.parameter not in uses


def check_mixture(dense, loaded, anatomy):
    """Assert that experts count one by one, and that what chooses among them is as it was."""
    experts = [matrix for matrix in anatomy.matrices if matrix.expert is not None]
    assert {matrix.expert for matrix in experts} >= {0, 1, 2, 3}
    for matrix in experts:
        view = matrix_view(loaded.get_parameter(matrix.parameter), matrix)
        assert int((view == 0).sum()) == pytest.approx(matrix.numel / 2, abs=1)
    old, new = dict(dense.named_parameters()), dict(loaded.named_parameters())
    gates = [n for b in anatomy.blocks for n, why in b.skipped if "router" in why or "gate" in why]
    assert gates
    assert all(torch.equal(old[name], new[name]) for name in gates)


@pytest.mark.parametrize("kind", REFUSED)
def test_blocks_without_a_linear_layer_are_refused_in_a_line(kind, tmp_path):
    with pytest.raises(RequestError, match="no linear layer") as caught:
        run(kind, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert row_of(kind, read_anatomy(build(kind))) in PAGE.read_text(encoding="utf-8").splitlines()


def test_a_fresh_process_without_this_package(tmp_path, walked):
    kinds = ["llama", "qwen3_moe", "t5"]
    for kind in kinds:
        model, batches, _ = run(kind, tmp_path / kind)
        torch.save((type(model).__name__, batches, walked["outputs"]), tmp_path / f"{kind}.pt")
        walked["outputs"].clear()
    code = (
        "import sys, torch, transformers\n"
        "torch.set_num_threads(1)\n"
        "for place in sys.argv[1:]:\n"
        "    name, batches, kept = torch.load(place + '.pt')\n"
        "    model = getattr(transformers, name).from_pretrained(place + '/out').eval()\n"
        "    for p in model.parameters(): p.data = p.data.clone()\n"
        "    with torch.no_grad():\n"
        "        for i, batch in enumerate(batches):\n"
        "            assert torch.equal(model(**batch)[0], kept[i][0]), place\n"
        "assert 'compress' not in sys.modules\n"
    )
    places = [str(tmp_path / kind) for kind in kinds]
    done = subprocess.run(
        [sys.executable, "-c", code, *places], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_the_page_lists_every_family_once():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:3] == "| `"]
    named = [line.split("`")[1] for line in rows]
    assert len(named) == len(set(named)) >= len(FAMILIES)
    assert set(FAMILIES) <= set(named)
    assert len([kind for kind in FAMILIES if kind not in REFUSED]) >= 100
