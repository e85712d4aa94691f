"""Heat maps: shades by value, numbers where they fit, means, the legend; and as PNG."""

from __future__ import annotations

import math

from compress.reports.heatmap import draw_heatmap, heatmap
from compress.reports.pictures import new_figure


def test_shades_by_size_with_means_and_what_a_shade_means():
    values = [[1.0, 2.0, 5.0], [3.0, math.nan, 4.0]]
    text = heatmap(
        values, ["q", "up"], ["0", "1", "2"], ends=None, means=True, width=30, ascii_only=False
    )
    assert text.splitlines() == [
        "   0   1   2      mean",
        " q ░░░ ▒▒▒ ███    2.67",
        "up ▓▓▓     ███    3.50",
        "1.00░░2.00▒▒3.00▓▓4.00██5.00",
    ]


def test_numbers_where_there_is_room():
    text = heatmap([[2.781, 3.5, 4.061]], ["q"], ["0", "1", "2"], ends=None, ascii_only=False)
    assert text.splitlines()[:2] == ["  0       1       2", "q ░░2.78  ▓▓3.50  ██4.06"]
    assert text.splitlines()[-1] == "2.78 ░░ 3.10 ▒▒ 3.42 ▓▓ 3.74 ██ 4.06"


def test_more_columns_than_characters_share_one():
    values = [float(i) for i in range(200)]
    text = heatmap([values], ["q"], [str(i) for i in range(200)], ends=None, ascii_only=True)
    shades = text.splitlines()[1].split()[1]
    assert len(shades) == 67  # three columns each
    assert shades == "".join(sorted(shades, key=".:*#".index))
    assert "3 columns to a character" in text
    assert max(map(len, text.splitlines())) <= 80
    text.encode("ascii")


def test_no_value_at_all_is_drawn_empty():
    text = heatmap([[None, math.nan]], ["q"], ["0", "1"], ends=None, ascii_only=False)
    assert text.splitlines()[1] == "q"
    assert len(heatmap([], [], [], ends=None).splitlines()) == 2
    assert "3.0" in heatmap([[3.0]] * 2, ["q", "k"], ["0"], ends=None)


def test_the_picture_has_its_numbers_and_its_scale_beside():
    figure, axes = new_figure(1, 1, (6, 3))
    draw_heatmap(axes[0, 0], figure, [[0.25, None], [0.5, 1.0]], None, "alpha")
    assert sorted(text.get_text() for text in axes[0, 0].texts) == ["0.250", "0.500", "1.000"]
    (scale,) = axes[0, 0].child_axes
    assert scale.get_ylabel() == "alpha"
    assert scale.get_ylim() == (0.25, 1.0)
    figure, axes = new_figure(1, 1, (6, 3))
    draw_heatmap(axes[0, 0], figure, [[0.5] * 40])
    assert not axes[0, 0].texts
