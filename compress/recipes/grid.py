"""The grid of a recipe: its axes, what their values are called, and its cells."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compress.errors import near_names
from compress.recipes.marks import Mark, Node
from compress.recipes.mistakes import Mistakes
from compress.recipes.reading import Source
from compress.recipes.references import WHOLE

_LABEL = 40


@dataclass(frozen=True)
class Axis:
    """One dimension of the grid.

    Attributes:
        name: of the axis.
        values: plain values, or Nodes to be resolved.
        labels: how each is called in names of cells, all different.
        mark: where it stands.
    """

    name: str
    values: tuple[Node, ...]
    labels: tuple[str, ...]
    mark: Mark


def listed(node: Node | None) -> list[Node]:
    """The entries of a list; one value counts as a list of one."""
    if node is None:
        return []
    return node.value if isinstance(node.value, list) else [node]


def read_axes(matrix: Mapping[str, Node], seeds: Node | None, mistakes: Mistakes) -> Iterator[Axis]:
    """The axes of `matrix:`, and the seeds; mistakes are collected."""
    for name, node in matrix.items():
        if name in ("exclude", "include"):
            continue
        if name in WHOLE:
            mistakes.add(node.place, f"`{name}` can't name an axis: `${{{name}.…}}` is taken")
        values = listed(node)
        if not isinstance(node.value, list):
            mistakes.add(node.place, f"axis `{name}` is a list of values")
            continue
        if not values:
            mistakes.add(node.place, f"axis `{name}` has no value: the grid has no cell")
        yield Axis(name, tuple(values), _labels(name, values, mistakes), node.place)
    if seeds is not None:
        values = _seeds(seeds, mistakes)
        if "seed" in matrix:
            mistakes.add(seeds.place, "`seeds` stands beside an axis `seed`: one is enough")
        else:
            labels = tuple(str(v.value) for v in values)
            yield Axis("seed", tuple(values), labels, seeds.place)


def _seeds(node: Node, mistakes: Mistakes) -> list[Node]:
    """Seeds from how many (from 0 on) or which."""
    if isinstance(node.value, int) and not isinstance(node.value, bool) and node.value > 0:
        return [Node(seed, node.mark) for seed in range(node.value)]
    values = listed(node)
    if not values or any(not isinstance(v.value, int) or isinstance(v.value, bool) for v in values):
        mistakes.add(node.place, "`seeds` is how many, or a list of whole numbers")
        return []
    return values


def _labels(name: str, values: list[Node], mistakes: Mistakes) -> tuple[str, ...]:
    """What each value is called in the name of a cell."""
    found: list[str] = []
    for number, node in enumerate(values):
        value = node.value
        if isinstance(value, dict):
            named = value.get("name")
            if named is None:
                mistakes.add(node.mark, f"axis `{name}`: a mapping of settings needs a `name:`")
            value = named.value if named is not None else number
        elif isinstance(value, list):
            value = "+".join(str(child.plain()) for child in value)
        text = re.sub(r"[^A-Za-z0-9._+@-]+", "-", str(value)).strip("-.")[-_LABEL:] or "none"
        if text in found and not isinstance(node.value, dict):
            before = values[found.index(text)]
            if before.value == node.value:
                mistakes.add(node.mark, f"axis `{name}` has `{value}` twice")
            text = f"{text}-{number}"
        found.append(text)
    return tuple(found)


def read_cells(
    axes: list[Axis],
    matrix: Mapping[str, Node],
    max_cells: int,
    source: Source,
    mistakes: Mistakes,
) -> Iterator[tuple[int, ...]]:
    """The grid without what is excluded, then what is included besides."""
    total = 1
    for axis in axes:
        total *= len(axis.values)
    if total > 100 * max_cells:  # not to be listed at all
        _too_many(total, max_cells, matrix, source, mistakes)
        return
    excluded = _selections(matrix.get("exclude"), axes, False, mistakes)
    grid = list(itertools.product(*(range(len(axis.values)) for axis in axes)))
    cells = [c for c in grid if not any(_matches(c, s) for s in excluded)]
    for extra in _selections(matrix.get("include"), axes, True, mistakes):
        whole = tuple(extra[i] for i in range(len(axes)))
        cells += [whole] if whole not in cells else []
    if not cells and all(axis.values for axis in axes):
        place = matrix["exclude"].place if "exclude" in matrix else source.tree.mark
        mistakes.add(place, "the grid has no cell left")
    if len(cells) > max_cells:
        _too_many(len(cells), max_cells, matrix, source, mistakes)
        return
    yield from cells


def _too_many(
    count: int, most: int, matrix: Mapping[str, Node], source: Source, mistakes: Mistakes
) -> None:
    first = next(iter(matrix.values()), None)
    place = first.place if first is not None else source.tree.mark
    mistakes.add(
        place, f"the grid has {count} cells, more than {most}", f"`--max-cells {count}` allows them"
    )


def _matches(cell: tuple[int, ...], selection: Mapping[int, int]) -> bool:
    return all(cell[axis] == value for axis, value in selection.items())


def _selections(
    node: Node | None, axes: list[Axis], whole: bool, mistakes: Mistakes
) -> list[dict[int, int]]:
    """Cells named by values of axes: {number of the axis: number of its value}."""
    found = []
    names = [axis.name for axis in axes]
    for child in listed(node):
        if not isinstance(child.value, dict):
            mistakes.add(child.mark, "a mapping of axes and values is needed")
            continue
        selection: dict[int, int] = {}
        for name, wanted in child.value.items():
            if name not in names:
                mistakes.add(wanted.place, f"there is no axis `{name}`", near_names(name, names))
                continue
            axis = axes[names.index(name)]
            options = [_short(value) for value in axis.values]
            if _short(wanted) not in options:
                mistakes.add(
                    wanted.mark,
                    f"axis `{name}` has no `{_short(wanted)}`",
                    near_names(str(_short(wanted)), map(str, options)),
                )
                continue
            selection[names.index(name)] = options.index(_short(wanted))
        if whole and len(selection) < len(axes) and len(selection) == len(child.value):
            missing = [n for n in names if n not in child.value]
            mistakes.add(child.mark, f"a cell to include needs every axis: {', '.join(missing)}")
        elif len(selection) == len(child.value):
            found.append(selection)
    return found


def _short(node: Node) -> Any:
    """An axis's value as a selection names it: by its `name:` where it is a mapping."""
    if isinstance(node.value, dict) and "name" in node.value:
        return node.value["name"].value
    return node.plain()
