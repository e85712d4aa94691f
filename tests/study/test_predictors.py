"""Agreement of predictors with what was measured."""

import numpy as np
import pytest

from compress.study.outcomes import Grid, Metric, Score
from compress.study.predicting import agreement
from compress.study.settings import Setting

WAY = Setting("wanda", "uniform", 0.5)


def grid_of(means, smaller):
    metric = Metric("loss:text" if smaller else "acc:text", "text", smaller, "general text")
    grid = Grid(list(means), [WAY], [0], [metric])
    for name, mean in means.items():
        grid.scores[name, WAY, 0, metric.name] = Score(mean, np.array([mean]), ("0",))
    return grid


@pytest.mark.parametrize("smaller", [True, False])
def test_the_order_of_goodness_counts_not_that_of_values(smaller):
    grid = grid_of({"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}, smaller)
    values = {
        "similarity": {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.1},
        "divergence": {"a": 0.4, "b": 0.3, "c": 0.1, "d": 0.2},
        "overlap": dict.fromkeys("abcd", 0.5),
    }
    rows = {row["predictor"]: row for row in agreement(grid, {"text": values})}
    sign = 1 if smaller else -1  # the best set has the least loss, or the greatest accuracy
    assert rows["similarity"]["tau"] == pytest.approx(sign * 1.0)
    # Divergence, less is nearer: c, d, b, a, which is the measured order but for one pair, turned.
    assert rows["divergence"]["tau"] == pytest.approx(-sign * 4 / 6)
    assert rows["similarity"]["first"] == "a"
    assert rows["divergence"]["first"] == "c"
    assert "overlap" not in rows  # all equal: there is no order


def test_two_sets_have_no_order_worth_a_word():
    assert agreement(grid_of({"a": 1.0, "b": 2.0}, True), {"text": {}}) == []


def test_a_study_says_how_well_the_predictors_did(study, tmp_path, texts):
    names = tuple(str(texts / n) for n in ("boats.txt", "sums.txt", "lists.txt"))
    result = study(tmp_path / "study", calib=names, methods=("wanda",), sparsity=(0.5,), seeds=1)
    rows = result.as_dict()["predictors"]
    assert {row["predictor"] for row in rows} == {
        "similarity", "overlap", "perplexity", "divergence"
    }  # fmt: skip
    assert all(-1 <= row["tau"] <= 1 and row["n"] == 3 for row in rows)
    assert "Kendall's tau" in result.render()
