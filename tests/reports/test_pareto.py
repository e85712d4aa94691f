"""Quality against cost: which runs no other beats."""

import pytest

from compress.errors import RequestError
from compress.reports.compare import Report, report
from compress.reports.pareto import pareto_text, plane_of
from compress.reports.records import Measures, Perplexity, Speed
from compress.reports.runs import Run


def run(name, nonzero, ppl, tmp_path):
    after = Measures(nonzero=nonzero, perplexity={"w": Perplexity(ppl, 0.1)})
    return Run(name, tmp_path / name, after=after)


@pytest.fixture
def runs(tmp_path):
    named = {"dense": (100, 10.0), "good": (50, 11.0), "poor": (50, 15.0), "small": (20, 30.0),
             "worst": (90, 40.0)}  # fmt: skip
    return [run(name, *values, tmp_path) for name, values in named.items()]


def test_the_front_is_what_no_other_beats(runs):
    plane = plane_of(runs, "non-zero")
    assert [p.name for p in plane.points] == ["small", "good", "poor", "worst", "dense"]
    assert {p.name for p in plane.points if p.best} == {"dense", "good", "small"}


def test_equal_runs_do_not_beat_each_other(tmp_path):
    twins = [run("a", 5, 2.0, tmp_path), run("b", 5, 2.0, tmp_path), run("c", 6, 3.0, tmp_path)]
    assert [p.best for p in plane_of(twins, "non-zero").points] == [True, True, False]


def test_more_tokens_a_second_are_better(tmp_path):
    named = {"slow": (10.0, 5.0), "fast": (20.0, 5.0), "fastest": (30.0, 9.0)}
    runs = [
        Run(name, tmp_path, after=Measures(perplexity={"w": Perplexity(ppl)},
                                           speed=Speed(decode_tokens_per_s=rate)))
        for name, (rate, ppl) in named.items()
    ]  # fmt: skip
    plane = plane_of(runs, "tokens/s")
    assert {p.name for p in plane.points if p.best} == {"fast", "fastest"}


def test_it_is_drawn_below_the_table_and_as_a_picture(runs, tmp_path):
    found = Report(tuple(runs), against="non-zero")
    text = found.render()
    assert max(map(len, text.splitlines())) <= 80
    assert "  a * small" in text
    assert "  c   poor" in text
    assert "a" in pareto_text(plane_of(runs, "non-zero"), ascii_only=True).split("small")[0]
    found.draw(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_be_drawn_is_refused(runs, tmp_path):
    with pytest.raises(RequestError, match="`--pareto non-zeros`") as caught:
        plane_of(runs, "non-zeros")
    assert "did you mean `non-zero`?" in caught.value.hint
    with pytest.raises(RequestError, match="no run has a quality"):
        plane_of([Run(n, tmp_path, after=Measures(nonzero=k)) for n, k in (("a", 1), ("b", 2))],
                 "non-zero")  # fmt: skip
    with pytest.raises(RequestError):
        report([tmp_path], pareto="non-zero")


def test_training_runs_stand_beside_each_other_by_their_held_out_loss(tmp_path):
    from compress.reports.receipt import Receipt

    runs = []
    for name, loss in (("adam", 3.0), ("clipped", 2.5), ("spam", 3.001)):
        told = {"valid": {"valid": {"value": loss, "stderr": 0.01}}, "loss": {"value": 9.0}}
        receipt = Receipt("train-spam", extra={"training": told})
        runs.append(Run(name, tmp_path, receipt=receipt))
    text = Report(tuple(runs)).render()
    assert "2.500 ± 0.010 *" in text
    assert "3.001 ± 0.010\n" in text
    assert "another seed's noise isn't included" in text
    assert "9.0" not in text
