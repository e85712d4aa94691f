from __future__ import annotations

import io
import itertools
import math
import sys

import numpy as np
import pytest

from compress.reports import charts

EIGHTHS = " ▁▂▃▄▅▆▇█"


def heights(chart: str, rows: int) -> list[int]:
    """Read the eighths of every column back from a chart."""
    lines = [line[8:].ljust(72) for line in chart.splitlines()[:rows]]
    return [sum(EIGHTHS.index(line[c]) for line in lines) for c in range(72)]


def test_a_histogram_by_hand():
    chart = charts.histogram(
        [0, 1, 4, 2], [0, 1, 2, 3, 4], fit=[0, 0, 0, 4], mark=2.0, mark_label="here", width=16,
        height=2, x_label="x", ascii_only=False,
    )  # fmt: skip
    assert chart.splitlines() == [
        "     4 ┤    ██╌╌",
        "     2 ┤  ▄▄████",
        "     0 ┼────▲───",
        "        0   2  4",
        "        x   ▲ here   ╌ fitted",
    ]


def test_columns_are_as_high_as_the_counts_and_none_vanishes():
    counts = [0, 1, 48, 1000, 500, 3]
    chart = charts.histogram(counts, list(range(7)), ascii_only=False, height=6)
    seen = heights(chart, 6)[::12]
    assert seen == [0, 1, 2, 48, 24, 1]  # 1000 fills 48 eighths; a single count still shows


def test_more_bins_than_columns_are_summed():
    chart = charts.histogram([1] * 144, list(range(145)), ascii_only=False, height=1)
    assert chart.splitlines()[0] == "     2 ┤" + "█" * 72


def test_the_fit_never_hides_a_count():
    values = [1.0] * 50 + [1.5, 2.0, 3.0, 5.0, 9.0]
    bare = heights(charts.spectrum(values, ascii_only=False), 6)
    fitted = charts.spectrum(values, tail_from=1.4, exponent=2.0, ascii_only=False)
    assert "╌" in fitted
    assert heights(fitted.replace("╌", " "), 6) == bare


def test_the_fitted_tail_expects_what_a_pareto_sample_has():
    quantiles = (np.arange(20000) + 0.5) / 20000
    values = 0.5 * (1 - quantiles) ** (-1 / 1.5)  # density x**-2.5 from 0.5 on
    edges = np.geomspace(0.5, values.max(), 30)
    counts, _ = np.histogram(values, edges)
    expected = charts._expected(edges.tolist(), len(values), 0.5, 2.5)
    np.testing.assert_allclose(expected, counts, atol=2)
    assert charts._expected([0.1, 0.3, 0.5], 10, 0.5, 2.5) == [0, 0]


def test_every_eigenvalue_is_drawn_or_said_to_be_left_out():
    text = charts.spectrum([1.0, 2.0, 0.0, -1e-9, math.nan], ascii_only=False)
    assert text.splitlines()[-1].strip() == "left out: 2 at or below zero, 1 not finite"
    drawn = [h > 0 for h in heights(text, 6)]  # few values: bins are several columns wide
    assert [full for full, _ in itertools.groupby(drawn)].count(True) == 2


def test_the_tail_is_marked_at_its_place():
    text = charts.spectrum([0.01, 0.1, 1.0, 10.0, 100.0], tail_from=1.0, ascii_only=False)
    axis = text.splitlines()[6][8:]
    assert axis.index("▲") == 36  # the middle of four decades in 72 columns
    assert "▲ tail from 1" in text


@pytest.mark.parametrize("values", [[], [3.0], [3.0, 3.0], [0.0], [math.nan], [1e-300, 1e300]])
def test_edge_inputs_are_defined_and_fit(values):
    made = [
        charts.spectrum(values, tail_from=3.0, exponent=2.0),
        charts.line(values),
        charts.bars([f"block {i}" for i in range(len(values))], values),
        charts.histogram([0] * len(values), list(range(len(values) + 1))),
    ]
    for chart in made:
        assert chart
        assert max(map(len, chart.splitlines())) <= 80


def test_bars_are_in_proportion():
    text = charts.bars(["a", "bb"], [1.0, 2.0], width=30, ascii_only=False)
    room = 30 - 2 - 5 - 6
    assert text.splitlines() == [
        "a    1.000   " + "█" * 8 + "▌",
        "bb   2.000   " + "█" * room,
    ]
    text = charts.bars(["a", "b"], [-0.5, 1.0], decimals=1, ascii_only=True, width=25)
    assert text.splitlines() == ["a   -0.5", "b    1.0   " + "#" * 14]
    from_two = charts.bars(["a", "b"], [2.0, 3.0], origin=2.0, ascii_only=False)
    assert from_two.splitlines()[0] == "a   2.000"


def test_a_line_falls_from_corner_to_corner():
    text = charts.line([10.0 - i for i in range(11)], x_label="step", ascii_only=False, height=11)
    rows = [line[8:] for line in text.splitlines()[:11]]
    columns = [row.index("•") for row in rows]
    assert columns[0] == 0
    assert columns[-1] == 71
    assert columns == sorted(columns)
    assert text.splitlines()[-1].strip() == "step"


def test_a_line_over_whole_numbers_has_whole_ticks():
    ticks = charts.line([3.2, 3.4, 3.5, 3.3, 3.4, 3.3, 3.25, 3.3], ascii_only=True).splitlines()[-1]
    assert ticks.split() == [str(i) for i in range(8)]
    assert charts.line(list(range(301))).splitlines()[-1].split() == [
        "0",
        "50",
        "100",
        "150",
        "200",
        "250",
        "300",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(210, "210"), (0.84, "0.84"), (1e-3, "1e-3"), (1.25e6, "1.2e6"), (-0.0198, "−0.02"), (0, "0"),
     (9999, "9999"), (123.4, "123")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert charts.number(value) == text
    assert len(text) <= 6


def test_ascii_stands_in_where_the_encoding_has_no_blocks(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    values = [0.1, 0.2, 0.2, -0.3, 5.0]
    for chart in (
        charts.spectrum(values, tail_from=0.2, exponent=2.0),
        charts.bars(["a"] * 5, values),
        charts.line(values),
    ):
        chart.encode("ascii")


def test_mismatched_lengths_are_refused():
    with pytest.raises(ValueError, match="need 3 edges"):
        charts.histogram([1, 2], [0, 1])
    with pytest.raises(ValueError, match="1 labels for 2"):
        charts.bars(["a"], [1, 2])
