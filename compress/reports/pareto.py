"""Quality against size, speed or memory: which runs no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from compress.errors import RequestError, near_names
from compress.reports import charts
from compress.reports.columns import Column, columns
from compress.reports.runs import Run

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Point(NamedTuple):
    """A run in the plane; `best` if no other run is at least as good in both and better in one."""

    name: str
    cost: float
    quality: float
    best: bool


class Plane(NamedTuple):
    """Runs by a cost and a quality.

    Attributes:
        cost, quality: the two measures.
        points: those runs that have both, cheapest first.
    """

    cost: Column
    quality: Column
    points: tuple[Point, ...]


def costs_of(runs: Sequence[Run]) -> list[str]:
    """The costs that two runs with a quality have: those that `plane_of` can draw."""
    known = columns(runs)
    quality = next((column for column in known if column.test is not None), None)
    if quality is None:
        return []
    scored = [run for run in runs if quality.value(run) is not None]
    return [
        column.title
        for column in known
        if column.test is None and sum(column.value(run) is not None for run in scored) > 1
    ]


def plane_of(runs: Sequence[Run], title: str) -> Plane:
    """Lay runs out by one measure and the first quality that they have.

    Args:
        runs: of a report.
        title: of the cost: "non-zero", "on disk", "tokens/s", "memory".

    Raises:
        RequestError: no such measure, no quality, or fewer than two runs that have both.
    """
    known = columns(runs)
    costs = {column.title: column for column in known if column.test is None}
    if title not in costs:
        raise RequestError(
            f"`--pareto {title}`: no measure of that name differs between the runs",
            near_names(title, costs) if costs else "sizes, speed and memory are such measures",
        )
    quality = next((column for column in known if column.test is not None), None)
    if quality is None:
        raise RequestError("`--pareto`: no run has a quality", "score them: `--ppl`, `--tasks`")
    cost = costs[title]
    named = [(run.name, cost.value(run), quality.value(run)) for run in runs]
    pairs = [(name, x, y) for name, x, y in named if x is not None and y is not None]
    if len(pairs) < 2:
        raise RequestError(f"`--pareto {title}`: fewer than two runs have it and {quality.title}")
    points = [
        Point(name, x, y, not any(_beats(other, (x, y), cost, quality) for _, *other in pairs))
        for name, x, y in pairs
    ]
    points.sort(key=lambda p: (p.cost, p.quality) if cost.smaller else (-p.cost, p.quality))
    return Plane(cost, quality, tuple(points))


def _beats(other: Sequence[float], own: tuple[float, float], cost: Column, quality: Column) -> bool:
    """Whether a run is at least as good in both measures and better in one."""
    signs = [1 if column.smaller else -1 for column in (cost, quality)]
    gains = [sign * (mine - theirs) for sign, mine, theirs in zip(signs, own, other)]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


def pareto_text(plane: Plane, *, width: int = 72, ascii_only: bool | None = None) -> str:
    """The plane in the terminal: a letter a run, and the list of them; the best are marked."""
    letters = [_LETTERS[i % len(_LETTERS)] for i in range(len(plane.points))]
    lines = [
        f"{plane.quality.title} by {plane.cost.title}",
        charts.scatter(
            [p.cost for p in plane.points],
            [p.quality for p in plane.points],
            letters,
            x_label=plane.cost.title,
            width=width,
            ascii_only=ascii_only,
        ),
    ]
    lines += [
        f"  {letter} {'*' if point.best else ' '} {point.name}"
        for letter, point in zip(letters, plane.points)
    ]
    return "\n".join([*lines, "* no other run is as good in one and better in the other"])


def draw_pareto(plane: Plane, path: str | Path) -> None:
    """The plane as a PNG, the best runs joined by steps.

    Raises:
        RunError: the file can't be written.
    """
    from compress.reports.pictures import new_figure, save_figure

    figure, axes = new_figure(1, 1, (6.4, 4.4))
    plot = axes[0, 0]
    best = [p for p in plane.points if p.best]
    rest = [p for p in plane.points if not p.best]
    plot.step([p.cost for p in best], [p.quality for p in best], where="post", color="0.6", lw=1)
    plot.scatter([p.cost for p in rest], [p.quality for p in rest], color="0.6", s=24)
    plot.scatter([p.cost for p in best], [p.quality for p in best], color="tab:blue", s=36)
    for point in plane.points:
        plot.annotate(point.name, (point.cost, point.quality), xytext=(4, 4),
                      textcoords="offset points", fontsize=7)  # fmt: skip
    plot.set_xlabel(plane.cost.title)
    plot.set_ylabel(plane.quality.title)
    save_figure(figure, path)
