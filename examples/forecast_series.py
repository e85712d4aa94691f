"""SPAM and Stable-SPAM in someone else's loop: a weekly drought series, forecast four weeks ahead.

    python examples/forecast_series.py [--seeds N] [--anomalies 0,0.05,0.1] [--quick] [--json]

The US Drought Monitor's weekly shares of the country at or above each drought level, where
COMPRESS_ASSETS names a directory that holds `drought/Climate.csv`; else a series like it,
generated. A small network sees eight weeks and forecasts the levels four weeks later. As in
the SPAM paper's time-series experiment (arXiv:2501.06842, section 4), a share of the training
values gets large noise, which makes the gradient spike; test weeks are clean. The score is the
mean absolute error on the last fifth of the series, in percent of the area.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from comparing import Arm, arms, as_dict, compare, table
from torch import Tensor, nn

SERIES = Path("drought") / "Climate.csv"
LEVELS = ("D0", "D1", "D2", "D3", "D4")
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
PAST, AHEAD, BATCH, STEPS = 8, 4, 64, 300
NOISE = 5.0  # standard deviations of the series


class Series(NamedTuple):
    """Windows of a series, cut by time.

    Attributes:
        past, future: of the training part, [N, PAST, C] and [N, C], scaled.
        test_past, test_future: of the last fifth.
        scale: standard deviation of each level, to give errors in percent again, [C].
        name: where it is from.
    """

    past: Tensor
    future: Tensor
    test_past: Tensor
    test_future: Tensor
    scale: Tensor
    name: str


def read_weeks() -> tuple[Tensor, str]:
    """Return the weekly values, oldest first, [T, levels], and where they are from."""
    assets = os.environ.get("COMPRESS_ASSETS")
    if assets and (Path(assets) / SERIES).is_file():
        with open(Path(assets) / SERIES, newline="", encoding="utf-8") as stream:
            rows = sorted(csv.DictReader(stream), key=lambda row: row["MapDate"])
        values = [[float(row[level]) for level in LEVELS] for row in rows]
        return torch.tensor(values), "US Drought Monitor, weekly"
    return generated_weeks(), "a generated series (COMPRESS_ASSETS names no drought series)"


def generated_weeks(weeks: int = 1200) -> Tensor:
    """A series like it: a random walk of dryness with a season, as shares above five levels."""
    generator = torch.Generator().manual_seed(0)
    dryness, values = 0.0, []
    for week in range(weeks):
        season = 0.02 * torch.sin(torch.tensor(2 * torch.pi * week / 52))
        dryness = 0.995 * dryness + float(season)
        dryness += 0.06 * float(torch.randn((), generator=generator))
        values.append([100 / (1 + 2.718 ** (3 * (level / 2 - dryness))) for level in range(5)])
    return torch.tensor(values)


def cut(weeks: Tensor, name: str) -> Series:
    """Cut a series into windows: the first four fifths train, the last fifth tests."""
    split = len(weeks) * 4 // 5
    mean, scale = weeks[:split].mean(0), weeks[:split].std(0).clamp_min(1e-3)
    scaled = (weeks - mean) / scale
    parts = []
    for part in (scaled[:split], scaled[split - PAST :]):
        windows = part.unfold(0, PAST + AHEAD, 1).transpose(1, 2)
        parts += [windows[:, :PAST], windows[:, -1]]
    return Series(*parts, scale, name)


def spoiled(series: Series, share: float, seed: int) -> Series:
    """Return a series of whose training values, past and future, a share has large noise."""
    generator = torch.Generator().manual_seed(seed + 7)

    def spoil(values: Tensor) -> Tensor:
        hit = torch.rand(values.shape, generator=generator) < share
        return values + hit * NOISE * torch.randn(values.shape, generator=generator)

    return series._replace(past=spoil(series.past), future=spoil(series.future))


def train(arm: Arm, lr: float, seed: int, series: Series, steps: int) -> float:
    """Train one network; return its mean absolute test error in percent of the area.

    Args:
        arm, lr: the optimizer and its learning rate.
        seed: of the network and the batches.
        series: what it learns from.
        steps: of BATCH windows.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        width = len(LEVELS)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(PAST * width, 64), nn.GELU(), nn.Linear(64, width)
        )
        nn.init.zeros_(model[-1].weight)  # it starts by forecasting no change
        nn.init.zeros_(model[-1].bias)
    optimizer = arm.make(model.parameters(), lr)
    for _ in range(steps):
        rows = torch.randint(len(series.past), (BATCH,), generator=generator)
        past = series.past[rows]
        guess = past[:, -1] + model(past)  # the network says what changes
        arm.step(optimizer, nn.functional.mse_loss(guess, series.future[rows]))
    with torch.no_grad():
        guess = series.test_past[:, -1] + model(series.test_past)
        return float(((guess - series.test_future).abs() * series.scale).mean())


def _run(arm: Arm, lr: float, seed: int, *, series: Series, share: float, steps: int) -> float:
    return train(arm, lr, seed, spoiled(series, share, seed), steps)


def persistence(series: Series) -> float:
    """The error of forecasting no change."""
    return float(((series.test_past[:, -1] - series.test_future).abs() * series.scale).mean())


def main() -> None:
    """Run the comparison and print a table for each share of anomalies."""
    parser = argparse.ArgumentParser(description="A weekly series under four optimizers.")
    parser.add_argument("--seeds", type=int, default=5, help="seeds that are reported")
    parser.add_argument("--anomalies", default="0,0.05,0.1", help="shares of spoiled values")
    parser.add_argument("--rates", help="learning rates to choose from, with commas")
    parser.add_argument("--quick", action="store_true", help="2 seeds of 30 steps, one rate")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    given = parser.parse_args()
    torch.set_num_threads(1)
    steps, seeds = STEPS, given.seeds
    rates = tuple(map(float, given.rates.split(","))) if given.rates else RATES
    shares = [float(share) for share in given.anomalies.split(",")]
    if given.quick:
        steps, seeds, rates, shares = 30, 2, RATES[2:3], shares[:2]
    started = time.process_time()
    series = cut(*read_weeks())
    found = {}
    for share in shares:
        print(f"anomalies in {share:.0%} of the training values", file=sys.stderr)
        found[share] = compare(
            arms(reset_every=steps // 5),
            rates,
            partial(_run, series=series, share=share, steps=steps),
            seeds=seeds,
            tuning_seeds=1 if given.quick else 2,
            higher_is_better=False,
            say=lambda text: print(text, file=sys.stderr),
        )
    if given.json:
        rows = {str(share): as_dict(rows) for share, rows in found.items()}
        content = {"series": series.name, "persistence": persistence(series), "anomalies": rows}
        print(json.dumps(content))
        return
    print(f"{series.name}; no change forecast: error {persistence(series):.2f}")
    for share, rows in found.items():
        title = f"\nanomalies in {share:.0%} of the training values, test error (less is better)"
        print(table(title, rows, digits=3))
    print(f"\n{seeds} seeds, {steps} steps; {time.process_time() - started:.0f} s of CPU time")


if __name__ == "__main__":
    main()
