"""The grid: every cell is what alpha-prune makes alone; kills, failures, shards change nothing."""

import json

import pytest

import compress
from compress.checkpoints.source import open_source
from compress.errors import RequestError, RunError
from compress.reports import validate
from compress.study import pruning
from compress.study.journal import read_study
from compress.study.working import Worker


def grid(path):
    return (path / "grid.jsonl").read_text()


def cells(path):
    return [json.loads(line) for line in grid(path).splitlines()]


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    place = tmp_path_factory.mktemp("whole") / "study"
    return place, study(place)


@pytest.mark.parametrize("stats", ["exact", "dense"])
def test_cells_are_single_runs_bit_for_bit(study, tiny, tmp_path, stats):
    study(tmp_path / "study", stats=stats, seeds=1, patterns=("2:4",), sparsity=(0.5,))
    found = cells(tmp_path / "study")
    assert len(found) == 2 * 2 * 2
    for number, cell in enumerate(found):
        alone = compress.alpha_prune(
            tiny,
            tmp_path / str(number),
            calib=cell["calib"],
            method=cell["method"],
            allocation=None if cell.get("pattern") else "uniform",
            sparsity=None if cell.get("pattern") else cell["sparsity"],
            pattern=cell.get("pattern"),
            propagate="dense" if stats == "dense" else "pruned",
            seed=cell["seed"],
            samples=4,
            seqlen=32,
            batch_size=2,
            block_size=16,
            ppl=(*cell["perplexity"],),
            eval_seqlen=32,
            limit=6,
        )
        assert open_source(tmp_path / str(number)).digest() == cell["digest"]
        (spec,) = cell["perplexity"]
        measured = alone.after.perplexity[spec]
        assert measured.value == cell["perplexity"][spec]["value"]
        items = read_study(tmp_path / "study")[number][1]["perplexity"][spec]
        assert items == measured.losses.tolist()
    exact = len({cell["digest"] for cell in found})
    assert exact == len(found)


def test_the_study_is_complete_and_keeps_the_contract(whole, texts):
    place, result = whole
    names = {p.name for p in place.iterdir()}
    assert {"grid.jsonl", "items.parquet", "receipt.json", "cells.csv", "forest.png"} <= names
    assert not place.with_name("study.partial").exists()
    receipt = json.loads((place / "receipt.json").read_text())
    assert validate.check(receipt) == []
    assert receipt["status"] == "ok"
    assert len(receipt["cells"]) == 2 * 2 * 2 * 2
    assert receipt["cells"] == [json.loads(line) for line in grid(place).splitlines()]
    for cell in receipt["cells"]:
        assert cell.keys() >= {"calib", "format", "method", "sparsity", "seed", "status", "digest"}
    for row in receipt["comparison"]:
        assert row["reference"] == str(texts / "boats.txt")
        assert row["ci95"][0] <= row["difference"] <= row["ci95"][1]
        assert row.keys() >= {"calib", "metric", "p_holm", "better"}
    assert result.as_dict() == receipt
    tokens = {cell["data"]["tokens"] for cell in receipt["cells"]}
    assert tokens == {4 * 32}


@pytest.mark.parametrize("after", [1, 5])
def test_a_killed_study_goes_on_to_the_same_grid(study, whole, tmp_path, monkeypatch, after):
    """Killed while the walks write a block, and between two scores."""
    scored = []
    score = Worker._score

    def die(self, cell, *rest):
        if len(scored) == after:
            raise KeyboardInterrupt
        scored.append(cell)
        score(self, cell, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_score", die)
        with pytest.raises(KeyboardInterrupt):
            study(tmp_path / "study")
    assert not (tmp_path / "study").exists()
    walks = []
    walk = pruning.walk
    monkeypatch.setattr(pruning, "walk", lambda *a, **k: walks.append(1) or walk(*a, **k))
    study(tmp_path / "study", resume=True)
    assert grid(tmp_path / "study") == grid(whole[0])
    assert (tmp_path / "study/items.parquet").read_bytes() == (
        whole[0] / "items.parquet"
    ).read_bytes()
    # The group in which it was killed had been walked: only those never begun are.
    assert len(walks) == 4 - 1 - (after >= 4)


def test_a_resume_with_other_options_is_refused(study, tmp_path, monkeypatch):
    def die(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_score", die)
        with pytest.raises(KeyboardInterrupt):
            study(tmp_path / "study")
    with pytest.raises(RequestError, match=r"can't resume: `options\.samples` was 4"):
        study(tmp_path / "study", samples=5, resume=True)


def test_a_failing_cell_leaves_the_others_as_they_are(study, whole, tmp_path, monkeypatch):
    """SparseGPT at 60 % fails inside the lockstep walk; the others are walked without it."""
    from compress.sparsity import methods

    method = methods.METHODS["sparsegpt"]

    def fails(layer, gram):
        if layer.zeros > 0.55 * layer.weight.numel() and "layers.1" in layer.name:
            raise RunError("an activation overflowed")
        return method.prune(layer, gram)

    monkeypatch.setitem(methods.METHODS, "sparsegpt", method._replace(prune=fails))
    study(tmp_path / "study")
    expected = cells(whole[0])
    for cell, good in zip(cells(tmp_path / "study"), expected, strict=True):
        if (cell["method"], cell["sparsity"]) == ("sparsegpt", 0.6):
            assert (cell["status"], cell["error"]) == ("failed", "an activation overflowed")
            assert "perplexity" not in cell
        else:
            assert cell == good
    receipt = json.loads((tmp_path / "study/receipt.json").read_text())
    assert receipt["status"] == "partial"
    assert "4 of 16 cells failed" in receipt["notes"]
    assert any("sparsegpt 0.6" in line for line in receipt["verdict"])


def test_a_score_that_is_not_finite_fails_its_cell_alone(study, whole, tmp_path, monkeypatch):
    from compress.study import scoring

    measure = scoring.measure
    calls = []

    def nan(*given, **more):
        calls.append(1)
        if len(calls) == 2:
            raise RunError("the loss of window 0 of 6 is not finite")
        return measure(*given, **more)

    monkeypatch.setattr(scoring, "measure", nan)
    study(tmp_path / "study")
    found = cells(tmp_path / "study")
    assert [c["status"] for c in found].count("failed") == 1
    assert found[1]["error"] == "the loss of window 0 of 6 is not finite"
    assert [c for c in found if c["status"] == "ok"] == [
        c for i, c in enumerate(cells(whole[0])) if i != 1
    ]


def test_when_every_cell_fails_the_study_fails(study, tmp_path, monkeypatch):
    from compress.study import scoring

    def nan(*given, **more):
        raise RunError("the loss is not finite")

    monkeypatch.setattr(scoring, "measure", nan)
    with pytest.raises(RunError, match="none of the 16 cells could be scored: the loss is not"):
        study(tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_full_disk_stops_the_study(study, tmp_path, monkeypatch):
    def full(*given, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pruning, "walk", full)
    with pytest.raises(OSError, match="No space left"):
        study(tmp_path / "study")


def test_shards_together_are_the_whole(study, whole, tmp_path, monkeypatch):
    for i in (1, 2, 3):
        study(tmp_path / str(i), shard=(i, 3))
    counts = [len(cells(tmp_path / str(i))) for i in (1, 2, 3)]
    assert counts == [8, 4, 4]  # four groups of four cells

    def never(*given, **more):
        raise AssertionError("everything is known")

    monkeypatch.setattr(pruning, "walk", never)
    shards = tuple(str(tmp_path / str(i)) for i in (1, 2, 3))
    study(tmp_path / "study", reuse=shards)
    assert grid(tmp_path / "study") == grid(whole[0])
    found, want = (
        json.loads((p / "receipt.json").read_text()) for p in (tmp_path / "study", whole[0])
    )
    assert found["comparison"] == want["comparison"]


def test_more_seeds_reuse_what_is_there(study, whole, tmp_path, monkeypatch):
    walks = []
    walk = pruning.walk
    monkeypatch.setattr(pruning, "walk", lambda *a, **k: walks.append(1) or walk(*a, **k))
    study(tmp_path / "study", seeds=3, reuse=(str(whole[0]),))
    assert len(walks) == 2
    assert cells(tmp_path / "study")[:16] == cells(whole[0])


def test_a_budget_leaves_a_balanced_study(study, tmp_path, texts):
    study(tmp_path / "study", budget=1e-9, seeds=3)
    found = cells(tmp_path / "study")
    done = [c for c in found if c["status"] == "ok"]
    assert len(done) == 4  # one group: the least that can be
    assert {c["status"] for c in found} == {"ok", "skipped"}
    order = list(dict.fromkeys((c["seed"], c["calib"]) for c in found))
    both = [str(texts / n) for n in ("boats.txt", "sums.txt")]
    assert order == [(seed, calib) for seed in range(3) for calib in both]


def test_few_branches_at_once_give_the_same(study, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "_at_once", lambda *given: 3)
    study(tmp_path / "study")
    assert grid(tmp_path / "study") == grid(whole[0])


def test_equal_weights_are_scored_once(study, tmp_path, monkeypatch):
    from compress.study import scoring

    scored = []
    measure = scoring.measure
    monkeypatch.setattr(scoring, "measure", lambda *a, **k: scored.append(1) or measure(*a, **k))
    study(tmp_path / "study", methods=("magnitude",), sparsity=(0.5,))
    assert len(scored) == 2  # the pruned model and the dense one
