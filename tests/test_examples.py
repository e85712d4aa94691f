"""The examples run in their quick form; their parts do what they say."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def examples():
    sys.path.insert(0, str(EXAMPLES))
    yield {
        name: importlib.import_module(name)
        for name in ("comparing", "rl_control", "forecast_series")
    }
    sys.path.remove(str(EXAMPLES))


def _quick(name, **env):
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--quick", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **env}, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _check(rows):
    names = [row["optimizer"] for row in rows]
    assert names == ["Adam", "Adam, clipped", "SPAM", "Stable-SPAM"]
    for row in rows:
        assert len(row["scores"]) == 2
        assert all(math.isfinite(score) for score in row["scores"])
        spread = abs(row["scores"][0] - row["scores"][1]) / 2
        assert row["stderr"] == pytest.approx(spread)


def test_the_control_task():
    found = _quick("rl_control")
    _check(found["rows"])
    assert all(9 < score <= 200 for row in found["rows"] for score in row["scores"])


def test_the_series_without_assets():
    found = _quick("forecast_series", COMPRESS_ASSETS="")
    assert "generated" in found["series"]
    assert set(found["anomalies"]) == {"0.0", "0.05"}
    for rows in found["anomalies"].values():
        _check(rows)


def test_a_cart_moves_as_the_equations_say(examples):
    carts = examples["rl_control"].CartPoles(2, torch.Generator().manual_seed(0))
    carts.state = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.1, -0.5]])
    carts.step(torch.tensor([True, False]))
    # The equations of Barto, Sutton and Anderson, in plain Python.
    for row, (push, (x, v, a, w)) in enumerate(
        [(10.0, (0.0, 0.0, 0.0, 0.0)), (-10.0, (0.0, 1.0, 0.1, -0.5))]
    ):
        cart, pole, half = 1.0, 0.1, 0.5
        total = cart + pole
        temp = (push + pole * half * w * w * math.sin(a)) / total
        bent = 9.8 * math.sin(a) - math.cos(a) * temp
        bent /= half * (4 / 3 - pole * math.cos(a) ** 2 / total)
        moved = temp - pole * half * bent * math.cos(a) / total
        wanted = [x + 0.02 * v, v + 0.02 * moved, a + 0.02 * w, w + 0.02 * bent]
        assert carts.state[row].tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_fallen_pole_starts_again(examples):
    carts = examples["rl_control"].CartPoles(2, torch.Generator().manual_seed(0))
    carts.state[0, 2] = 1.0
    carts.age[:] = 199
    fallen, done, ages = carts.step(torch.tensor([True, True]))
    assert fallen.tolist() == [True, False]
    assert done.tolist() == [False, True]
    assert ages.tolist() == [200, 200]
    assert carts.age.tolist() == [0, 0]
    assert bool((carts.state.abs() <= 0.05).all())


def test_advantages_of_a_perfect_value_are_zero(examples):
    module = examples["rl_control"]
    steps = 6
    worth = [(1 - module.DISCOUNT**n) / (1 - module.DISCOUNT) for n in range(steps, 0, -1)]
    values = torch.tensor([*worth, 123.0])[:, None]  # what stands after the fall doesn't count
    fallen = torch.zeros(steps, 1, dtype=torch.bool)
    fallen[-1] = True
    assert torch.allclose(
        module.advantages(values, fallen, fallen), torch.zeros(steps, 1), atol=1e-5
    )


def test_windows_are_cut_by_time(examples):
    module = examples["forecast_series"]
    weeks = torch.arange(200.0)[:, None].repeat(1, 5)
    series = module.cut(weeks, "counted")
    back = lambda values: values * series.scale + weeks[:160].mean(0)
    gap = back(series.future)[:, 0] - back(series.past)[:, -1, 0]
    assert torch.allclose(gap, torch.full_like(gap, module.AHEAD), atol=1e-3)
    assert float(back(series.future).max()) < 160
    assert float(back(series.test_future).min()) >= 160 + module.AHEAD - 1
    assert module.persistence(series) == pytest.approx(module.AHEAD, abs=1e-3)
    spoiled = module.spoiled(series, 0.1, 0)
    assert (spoiled.past != series.past).float().mean() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(spoiled.test_past, series.test_past)


def test_the_rate_is_chosen_on_other_seeds_than_are_reported(examples):
    module = examples["comparing"]
    calls = []

    def run(arm, lr, seed):
        calls.append((lr, seed))
        return lr if seed >= 1000 else seed

    rows = module.compare(
        module.arms(10)[:2], (0.1, 0.3), run,
        seeds=3, tuning_seeds=2, higher_is_better=True, say=lambda text: None,
    )  # fmt: skip
    assert [row.lr for row in rows] == [0.3, 0.3]
    assert rows[0].scores == [0, 1, 2]
    assert {seed for lr, seed in calls if lr == 0.1} == {1000, 1001}
    text = module.table("a title", rows, digits=1)
    assert "1.0 ± 0.6" in text  # sd 1 over the root of 3
    assert max(map(len, text.splitlines())) <= 80
