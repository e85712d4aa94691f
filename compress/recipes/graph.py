"""A recipe unfolded: which steps are run in which cells, what each waits for, and where it lies.

A step is run once for every combination of the axes that it depends on, itself or through other
steps: a model trained once serves every cell that prunes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.errors import near_names
from compress.recipes.marks import Mark
from compress.recipes.mistakes import Mistakes
from compress.recipes.program import OWN, WRITES
from compress.recipes.recipe import Recipe, Step
from compress.recipes.references import (
    LATER,
    STEP_PARTS,
    Reference,
    Scope,
    Steps,
    references,
    strings,
)

RECEIPT = "receipt.json"


@dataclass(frozen=True)
class Instance:
    """One step in one cell.

    Attributes:
        step: the step.
        cell: (axis, number of its value) of the axes that it depends on.
        label: the cell as text, empty where it depends on no axis.
        needs: other instances by their place.
    """

    step: Step
    cell: tuple[tuple[str, int], ...]
    label: str
    needs: tuple[str, ...]

    @property
    def place(self) -> str:
        """Where its output lies in the run's directory: `CELL/STEP`; also its name."""
        return f"{self.label}/{self.step.name}" if self.label else self.step.name

    @property
    def writes(self) -> bool:
        """Whether the command itself makes the output directory."""
        return self.step.program.writes and not self.step.dry

    @property
    def files(self) -> str:
        """Where its other files lie (tables, pictures, plans)."""
        return f"{self.place}.files" if self.writes else self.place


@dataclass(frozen=True)
class Call:
    """What an instance asks of its command, references resolved.

    Attributes:
        arguments: what the command works on; LATER where that isn't known yet.
        options: by spelling; those that are None are left out.
    """

    arguments: tuple[Any, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """Every instance of a recipe, in an order in which all that it waits for comes first."""

    recipe: Recipe
    instances: Mapping[str, Instance]
    axes: Mapping[str, tuple[str, ...]]

    def scope(self, instance: Instance, steps: Steps, mistakes: Mistakes) -> Scope:
        """Where references of an instance are looked up."""
        recipe = self.recipe
        plain = Scope(recipe.vars, {}, (), recipe.source.path.parent, steps, mistakes)
        chosen = {axis.name: axis for axis in recipe.axes}
        cell = {name: plain.resolve(chosen[name].values[i]) for name, i in instance.cell}
        names = [axis.name for axis in recipe.axes]
        return Scope(recipe.vars, cell, names, recipe.source.path.parent, steps, mistakes)

    def call(self, instance: Instance, steps: Steps, mistakes: Mistakes) -> Call:
        """Resolve what an instance asks of its command."""
        scope = self.scope(instance, steps, mistakes)
        step = instance.step
        options = {name: scope.resolve(node) for name, node in step.options.items()}
        argument = scope.resolve(step.argument) if step.argument is not None else None
        if step.extra is not None:
            extra = scope.resolve(step.extra)
            argument = self._join(step, extra, options, argument, mistakes)
        values = argument if isinstance(argument, list) else [argument]
        arguments = tuple(v if v is LATER else str(v) for v in values if v is not None)
        return Call(arguments, options)

    def _join(
        self, step: Step, extra: Any, options: dict[str, Any], argument: Any, mistakes: Mistakes
    ) -> Any:
        """Take the options of `with:` in; those of the step itself win."""
        assert step.extra is not None
        if extra is LATER:
            return argument
        if not isinstance(extra, Mapping):
            mistakes.add(step.extra.place, f"step `{step.name}`: `with` is a mapping of options")
            return argument
        for key, value in extra.items():
            name = str(key).lstrip("-").replace("_", "-")
            if name == "name":  # of a named value of an axis
                continue
            if name in step.program.takes:
                argument = value if argument is None else argument
            elif name not in step.program.options or name in OWN:
                mistakes.add(
                    step.extra.place,
                    f"`{key}` isn't an option of {step.program.name}",
                    step.program.nearest(name),
                )
            elif name not in step.own:
                options[name] = value
        return argument

    def rows(self, instance: Instance) -> str:
        """What the table calls an instance."""
        chosen = {axis.name: axis for axis in self.recipe.axes}
        values = [
            f"seed {chosen[name].labels[i]}" if name == "seed" else chosen[name].labels[i]
            for name, i in instance.cell
        ]
        named = len(self.recipe.steps) == 1 or len(self.recipe.report) == 1
        return " ".join(values) if values and named else " ".join([*values, instance.step.name])


def unfold(recipe: Recipe, mistakes: Mistakes) -> Graph:
    """Find what every step depends on and unfold the grid; mistakes are collected."""
    uses = {name: _used(recipe, step, mistakes) for name, step in recipe.steps.items()}
    order = _ordered(recipe, {name: u.steps for name, u in uses.items()}, mistakes)
    axes: dict[str, tuple[str, ...]] = {}
    for name in order:
        own = set(uses[name].axes)
        for needed in uses[name].same_cell:
            own |= set(axes.get(needed, ()))
        axes[name] = tuple(axis.name for axis in recipe.axes if axis.name in own)
    for axis in recipe.axes:
        if not recipe.broken and not any(axis.name in used for used in axes.values()):
            mistakes.add(axis.mark, f"no step depends on the axis `{axis.name}`")
    instances: dict[str, Instance] = {}
    for name in order:
        for instance in _instances(recipe, name, axes, uses[name], instances):
            instances.setdefault(instance.place, instance)
    return Graph(recipe, instances, axes)


@dataclass(frozen=True)
class _Uses:
    """What a step refers to: axes, steps of its own cell, and steps of all cells."""

    axes: frozenset[str]
    same_cell: tuple[str, ...]
    all_cells: tuple[str, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.same_cell, *self.all_cells]))


def _used(recipe: Recipe, step: Step, mistakes: Mistakes) -> _Uses:
    names = {axis.name for axis in recipe.axes}
    axes: set[str] = set()
    same: list[str] = []
    everywhere: list[str] = []
    waiting = [(reference, text.mark) for node in step.nodes for text in strings(node)
               for reference in references(text.value)]  # fmt: skip
    seen: set[str] = set()
    while waiting:
        reference, mark = waiting.pop(0)
        head, rest = reference.head, reference.parts[1:]
        if head in ("steps", "all"):
            if _known_step(recipe, reference, mark, mistakes):
                (same if head == "steps" else everywhere).append(rest[0])
        elif head in names or (head == "matrix" and rest and rest[0] in names):
            axes.add(head if head in names else rest[0])
        else:
            variable = rest[0] if head == "vars" and rest else head
            if variable in recipe.vars and variable not in seen:
                seen.add(variable)
                waiting += [(r, t.mark) for t in strings(recipe.vars[variable])
                            for r in references(t.value)]  # fmt: skip
    for node in step.needs:
        if node.value in recipe.steps:
            same.append(node.value)
        elif node.value not in recipe.broken:
            mistakes.add(node.mark, f"there is no step `{node.value}`",
                         near_names(str(node.value), recipe.steps))  # fmt: skip
    return _Uses(frozenset(axes), tuple(dict.fromkeys(same)), tuple(dict.fromkeys(everywhere)))


def _known_step(recipe: Recipe, reference: Reference, mark: Mark, mistakes: Mistakes) -> bool:
    """Whether a reference to a step can be right."""
    rest = reference.parts[1:]
    if rest and rest[0] in recipe.broken:
        return False
    if not rest or rest[0] not in recipe.steps:
        name = rest[0] if rest else ""
        mistakes.add(mark, f"`${{{reference.text}}}`: there is no step `{name}`",
                     near_names(name, recipe.steps))  # fmt: skip
        return False
    part = rest[1] if len(rest) > 1 else ""
    if part not in STEP_PARTS:
        mistakes.add(mark, f"`${{{reference.text}}}`: a step has `output`, `files` and `receipt`",
                     near_names(part, STEP_PARTS))  # fmt: skip
        return False
    target = recipe.steps[rest[0]]
    if part == "output" and (not target.program.writes or target.dry):
        mistakes.add(
            mark,
            f"`${{{reference.text}}}`: step `{target.name}` ({target.program.name}"
            f"{', a dry run' if target.dry else ''}) writes no output",
            f"`${{steps.{target.name}.receipt.…}}` has what it found",
        )
        return False
    return True


def _ordered(recipe: Recipe, needs: Mapping[str, Sequence[str]], mistakes: Mistakes) -> list[str]:
    """Steps in an order in which what a step needs comes first; a cycle is a mistake."""
    order: list[str] = []
    open_: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in open_:
            chain = " -> ".join([*open_[open_.index(name) :], name])
            mistakes.add(recipe.steps[name].mark, f"steps in a circle: {chain}")
            return
        open_.append(name)
        for other in needs[name]:
            visit(other)
        open_.pop()
        order.append(name)

    for name in recipe.steps:
        visit(name)
    return order


def _instances(
    recipe: Recipe,
    name: str,
    axes: Mapping[str, tuple[str, ...]],
    uses: _Uses,
    known: Mapping[str, Instance],
) -> Iterator[Instance]:
    numbers = {axis.name: i for i, axis in enumerate(recipe.axes)}
    for cell in recipe.cells:
        own = tuple((axis, cell[numbers[axis]]) for axis in axes[name])
        needs = []
        for other in uses.same_cell:
            theirs = tuple((axis, cell[numbers[axis]]) for axis in axes.get(other, ()))
            needs += [i.place for i in known.values() if i.step.name == other and i.cell == theirs]
        for other in uses.all_cells:
            needs += [i.place for i in known.values() if i.step.name == other and _agree(i, own)]
        label = ",".join(f"{axis}={recipe.axes[numbers[axis]].labels[i]}" for axis, i in own)
        yield Instance(recipe.steps[name], own, label, tuple(dict.fromkeys(needs)))


def _agree(instance: Instance, cell: Sequence[tuple[str, int]]) -> bool:
    """Whether an instance lies in a cell, as far as their axes are the same."""
    own = dict(cell)
    return all(own.get(axis, value) == value for axis, value in instance.cell)


def found_instances(graph: Graph, instance: Instance, reference: Reference) -> list[Instance]:
    """The instances that `${steps.…}` or `${all.…}` names, seen from one instance."""
    if len(reference.parts) < 2:
        return []
    needed = [graph.instances[place] for place in instance.needs]
    named = [i for i in needed if i.step.name == reference.parts[1]]
    if reference.head == "steps":  # both forms may name one step: its own cell's agrees with all
        exact = [i for i in named if set(i.cell) <= set(instance.cell)]
        return exact[:1] or named[:1]
    return named


class Planned:
    """What references learn of steps before anything is run: places, and nothing of receipts."""

    def __init__(self, graph: Graph, instance: Instance, root: str = "OUT") -> None:
        self._graph, self._instance, self._root = graph, instance, root

    def value(self, reference: Reference, mark: Mark) -> Any:
        """A place, or LATER."""
        part = reference.parts[2] if len(reference.parts) > 2 else ""
        found = found_instances(self._graph, self._instance, reference)
        if part not in ("output", "files") or not found:
            return LATER
        places = [f"{self._root}/{i.place if part == 'output' else i.files}" for i in found]
        return places if reference.head == "all" else places[0]


def check_calls(graph: Graph, mistakes: Mistakes) -> dict[str, Call]:
    """Let every command judge its options and arguments, in every cell."""
    calls = {}
    for place, instance in graph.instances.items():
        call = graph.call(instance, Planned(graph, instance), mistakes)
        calls[place] = call
        step = instance.step
        for name, value in call.options.items():
            if value is LATER:
                continue
            mark = step.options[name].mark if name in step.options else step.mark
            if step.extra is not None and name not in step.options:
                mark = step.extra.mark
            fault = step.program.fault(name, value)
            if fault:
                mistakes.add(mark, f"step `{step.name}`: {fault}")
            if name in WRITES and isinstance(value, str) and ("/" in value or value == RECEIPT):
                mistakes.add(mark, f"step `{step.name}`: `{name}: {value}` is a bare file name; "
                                   "it lies beside the step's output")  # fmt: skip
        needed = step.program.argument is not None and step.program.argument.required
        if needed and not call.arguments:
            mistakes.add(step.mark, f"step `{step.name}` has no `{step.program.takes[0]}:`")
    return calls
