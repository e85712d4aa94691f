"""`--budget-ms`: the foretold time's arithmetic, the search, what is said afterwards."""

import json

import pytest
import torch

from compress.cli.main import call
from compress.errors import RequestError
from compress.lowrank import planned, timing
from compress.lowrank.allocation import DENSE
from compress.lowrank.modules import Unit, units_of
from compress.lowrank.timing import Timing, _line, keep_within

SECONDS = Timing(
    1.0, {(8, 8): 0.2, (16, 8): 0.3}, {(8, 8): (0.05, 0.02), (16, 8): (0.1, 0.03)}
)  # fmt: skip


class Layer:
    """As much of a matrix as timing looks at."""

    def __init__(self, *shape):
        self.shape = shape


def units(*shapes):
    return [Unit((Layer(*shape),)) for shape in shapes]


def test_a_forward_is_the_dense_one_with_its_layers_exchanged():
    two = units((8, 8), (16, 8))
    assert SECONDS.foretell(two, [DENSE, DENSE]) == 1.0
    assert SECONDS.foretell(two, [2, DENSE]) == pytest.approx(1 - 0.2 + 0.05 + 0.04)
    assert SECONDS.foretell(two, [2, 3]) == pytest.approx(1 - 0.2 + 0.09 - 0.3 + 0.19)
    assert SECONDS.least(two) == pytest.approx(1 - 0.2 + 0.07 - 0.3 + 0.13)


def test_a_shared_factor_takes_the_place_of_all_its_layers():
    both = [Unit((Layer(8, 8), Layer(8, 8)))]
    assert SECONDS.foretell(both, [4]) == pytest.approx(1 - 0.4 + 0.1 + 0.12)


def test_times_lie_on_the_least_squares_line_and_never_fall():
    assert _line([2, 4, 8], [0.3, 0.5, 0.9]) == pytest.approx((0.1, 0.1))
    assert _line([2, 4], [0.5, 0.3]) == pytest.approx((0.4, 0.0))
    assert _line([1], [0.5]) == (0.5, 0.0)


def test_the_largest_share_within_the_time_is_found():
    one = units((8, 8))

    def ranks_at(keep):
        if keep < 0.2:
            raise RequestError("too little")
        return [int(keep * 10)]  # 0.05 + 0.02 rank against 0.2

    for budget in (0.95, 0.93, 0.99):
        keep, ranks = keep_within(SECONDS, one, budget, ranks_at)
        best = max(r for r in range(2, 10) if SECONDS.foretell(one, [r]) <= budget)
        assert ranks == [best]
        assert keep >= best / 10
    with pytest.raises(RequestError, match="can't be met: the fastest ranks take about 890 ms"):
        keep_within(SECONDS, one, 0.88, ranks_at)


@pytest.fixture
def timed(monkeypatch):
    """Every call takes a time by its kind: 10 ms the model, a layer by its weights."""

    def seconds(calls, device):
        with torch.inference_mode():
            for each in calls:
                each()  # what is timed can be run
        if len(calls) == 1:
            return [0.010]
        return [0.0005, 0.0001, 0.0002, 0.0003][: len(calls)]

    monkeypatch.setattr(timing, "in_turn", seconds)


def test_a_run_says_what_was_foretold_and_what_was_measured(timed, factor, checkpoint, tmp_path):
    done = factor(checkpoint("llama"), tmp_path / "out", budget_ms=8.0, budget_tokens=32, round=1)
    options = done.plan.options
    assert options["budget_ms"] == 8.0
    assert 0 < options["foretold_ms"] <= 8.0
    assert options["dense_ms"] == 10.0
    latency = done.receipt.as_dict()["after"]["latency"]
    assert set(latency) == {"1_token_s", "16_tokens_s", "32_tokens_s", "256_tokens_s"}
    (note,) = [n for n in done.receipt.notes if n.startswith("budget: 32 tokens take")]
    taken = latency["32_tokens_s"] * 1e3
    assert ("kept" in note) == (taken <= 8.0)
    tighter = factor(checkpoint("llama"), tmp_path / "two", budget_ms=6.5, round=1)
    assert tighter.plan.options["keep"] < options["keep"]


def test_it_may_be_killed_once_the_plan_is_made(timed, factor, checkpoint, tmp_path, monkeypatch):
    """A resumed run takes the plan that was made, and times nothing again."""
    given = {"budget_ms": 8.0, "round": 1, "method": "whiten"}
    monkeypatch.setattr("compress.lowrank.finishing.write_checkpoint", _die)
    with pytest.raises(KeyboardInterrupt):
        factor(checkpoint("llama"), tmp_path / "out", **given)
    kept = json.loads((tmp_path / "out.partial" / "planned.json").read_text())
    monkeypatch.undo()
    monkeypatch.setattr(planned, "measure_timing", _die)
    done = factor(checkpoint("llama"), tmp_path / "out", resume=True, **given)
    assert done.plan.options["foretold_ms"] == kept["options"]["foretold_ms"]


def _die(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("arch", "options", "said"),
    [
        ("llama", ("--budget-ms", "50"), "within `--budget-ms 50` already"),
        ("llama", ("--budget-ms", "0.001"), "can't be met: the fastest ranks take"),
        ("llama", ("--budget-ms", "0"), "`--budget-ms 0` isn't positive"),
        ("llama", ("--budget-ms", "5", "--keep", "0.5"), "each say how much is kept"),
        ("llama", ("--budget-ms", "5", "--alloc", "lems"), "tries many shares"),
        ("llama", ("--budget-ms", "5", "--budget-tokens", "0"), "is less than 1"),
        ("mixtral", ("--budget-ms", "5"), "how many tokens an expert gets"),
    ],
)
def test_bad_requests(timed, checkpoint, text, tmp_path, capsys, arch, options, said):
    code = call(
        ["lowrank-svd", str(checkpoint(arch)), "-o", str(tmp_path / "out"), "--calib", str(text),
         "--samples", "4", "--seqlen", "32", *options]
    )  # fmt: skip
    err = " ".join(capsys.readouterr().err.split())
    assert code == 2, err
    assert said in err
    assert not list(tmp_path.iterdir())


def test_shapes_of_a_model_are_timed_once_each(timed, checkpoint):
    from compress.checkpoints.anatomy import read_anatomy
    from compress.checkpoints.loader import skeleton
    from compress.checkpoints.source import open_source

    source = open_source(checkpoint("llama"))
    blocks = read_anatomy(skeleton(source)).blocks
    found = units_of([m for block in blocks for m in block.editable], ("gate-up",))

    class Settings:
        budget_tokens, budget_ms, seed = 16, 9.0, 0

    class Job:
        settings, running, device = Settings, torch.float32, "cpu"
        progress = staticmethod(lambda *_: None)

    Job.source = source
    times = timing.measure_timing(Job, found)
    assert set(times.lines) >= {(unit.out, unit.into) for unit in found}
    assert set(times.dense) >= {m.shape for unit in found for m in unit.matrices}
    assert times.foretell(found, [DENSE for _ in found]) == 0.010
    # 28 layers of 0.5 ms are more than the 10 ms of the whole: all shrink alike
    inside = sum(times.dense[m.shape] for unit in found for m in unit.matrices)
    assert inside == pytest.approx(0.010)
    assert times.lines[found[0].out, found[0].into][1] >= 0
    assert 0 < times.least(found) < 0.010


def test_ranks_of_a_given_plan_were_chosen_by_no_time(factor, checkpoint, tmp_path):
    path = checkpoint("llama")
    made = factor(path, tmp_path / "one", keep=0.6).plan
    done = factor(path, tmp_path / "two", plan=made, budget_ms=0.001)
    assert done.plan.rows[0]["module"] == made.rows[0]["module"]
    assert not any(note.startswith("budget") for note in done.receipt.notes)
