"""A recipe as typed parts: its variables, grid and steps, with every mistake of form told."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compress.errors import near_names
from compress.recipes.grid import Axis, listed, read_axes, read_cells
from compress.recipes.marks import Mark, Node
from compress.recipes.mistakes import Mistakes
from compress.recipes.program import OWN, RESERVED, Program, commands, near_command
from compress.recipes.reading import Source
from compress.recipes.references import WHOLE

SECTIONS = (
    "about", "vars", "env", "seed", "seeds", "matrix", "defaults", "steps", "report",
)  # fmt: skip
RETAINED = ("all", "receipt")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*$")
_TAKEN = ("logs", "records")


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: of the step.
        program: the command that it runs.
        argument: what the command works on, or None.
        options: by the command line's spelling without dashes, defaults worked in.
        own: names of those that the step itself gives.
        extra: `with:`, a mapping of further options.
        needs: steps that must be done before, beside those that it refers to.
        retain: "all" of its output, or only the "receipt" once nothing else needs it.
        mark: where it stands.
    """

    name: str
    program: Program
    argument: Node | None
    options: Mapping[str, Node]
    own: frozenset[str]
    extra: Node | None
    needs: tuple[Node, ...]
    retain: str
    mark: Mark

    @property
    def nodes(self) -> Iterator[Node]:
        """Everything in it that may hold references."""
        yield from filter(None, (self.argument, self.extra))
        yield from self.options.values()

    @property
    def dry(self) -> bool:
        """Whether it only plans, and so leaves no output."""
        node = self.options.get("dry-run")
        return node is not None and node.value is True


@dataclass(frozen=True)
class Recipe:
    """A recipe whose form is right; what it refers to isn't checked yet.

    Attributes:
        source: where it was read.
        about: a line for people.
        vars, env: by name.
        axes: of the grid, the seed last.
        cells: the grid: an index of each axis's values.
        steps: by name, as written.
        report: steps whose receipts are the rows of the table; empty takes those that measure.
        broken: names of steps that aren't in `steps` because of a mistake.
    """

    source: Source
    about: str
    vars: Mapping[str, Node]
    env: Mapping[str, Node]
    axes: tuple[Axis, ...]
    cells: tuple[tuple[int, ...], ...]
    steps: Mapping[str, Step]
    report: tuple[str, ...] = ()
    broken: frozenset[str] = frozenset()


def read_parts(source: Source, max_cells: int, mistakes: Mistakes) -> Recipe:
    """Take a recipe's tree apart; mistakes are collected."""
    tree = source.tree.value
    for name, node in tree.items():
        if name not in SECTIONS:
            mistakes.add(node.place, f"a recipe has no `{name}:`", near_names(name, SECTIONS))
    sections = {
        name: _mapping(tree.get(name), name, mistakes)
        for name in ("vars", "env", "matrix", "defaults", "steps")
    }
    if not sections["steps"]:
        mistakes.add(source.tree.mark, "the recipe has no `steps:`")
    for name, node in sections["vars"].items():
        if name in WHOLE:
            mistakes.add(node.place, f"`{name}` can't name a variable: `${{{name}.…}}` is taken")
    programs: dict[str, Program] = {}
    defaults = _defaults(sections["defaults"], tree.get("seed"), mistakes)
    axes = list(read_axes(sections["matrix"], tree.get("seeds"), mistakes))
    seeded = any(axis.name == "seed" for axis in axes)
    steps = {}
    for name, node in sections["steps"].items():
        step = _step(name, node, defaults, programs, seeded, mistakes)
        if step is not None:
            steps[name] = step
    _check_defaults(sections["defaults"], steps, mistakes)
    about = tree.get("about")
    return Recipe(
        source,
        str(about.value) if about else "",
        sections["vars"],
        sections["env"],
        tuple(axes),
        tuple(read_cells(axes, sections["matrix"], max_cells, source, mistakes)),
        steps,
        tuple(_report(tree.get("report"), sections["steps"], mistakes)),
        frozenset(set(sections["steps"]) - set(steps)),
    )


def _mapping(node: Node | None, name: str, mistakes: Mistakes) -> Mapping[str, Node]:
    if node is None or node.value is None:
        return {}
    if not isinstance(node.value, dict):
        mistakes.add(node.place, f"`{name}` is a mapping of names")
        return {}
    return node.value


def _defaults(given: Mapping[str, Node], seed: Node | None, mistakes: Mistakes) -> dict[str, Node]:
    """Options for every step that has them."""
    found = {name.replace("_", "-"): node for name, node in given.items()}
    for name, node in found.items():
        if name in OWN:
            mistakes.add(node.place, f"`{name}` is the run's own to say")
    if seed is not None:
        found.setdefault("seed", seed)
    return found


def _check_defaults(
    given: Mapping[str, Node], steps: Mapping[str, Step], mistakes: Mistakes
) -> None:
    known = {option for step in steps.values() for option in step.program.options} - {*OWN}
    for name, node in given.items():
        if known and name.replace("_", "-") not in known and name not in OWN:
            mistakes.add(node.place, f"no step has an option `{name}`", near_names(name, known))


def _step(
    name: str,
    node: Node,
    defaults: Mapping[str, Node],
    programs: dict[str, Program],
    seeded: bool,
    mistakes: Mistakes,
) -> Step | None:
    if not _NAME.match(name) or name in _TAKEN:
        mistakes.add(node.place, f"`{name}` can't name a step: letters, digits, `-`, `_`")
    if not isinstance(node.value, dict):
        mistakes.add(node.place, f"step `{name}` is a mapping with `run:`")
        return None
    program = _program(name, node, programs, mistakes)
    if program is None:
        return None
    argument, options = None, {}
    for key, child in node.value.items():
        spelled = key.lstrip("-").replace("_", "-")
        if spelled in RESERVED:
            continue
        if spelled in program.takes:
            argument = child
        elif spelled in OWN:
            mistakes.add(child.place, f"step `{name}`: `{key}` is the run's own to say")
        elif spelled in program.options:
            options[spelled] = child
        else:
            mistakes.add(
                child.place,
                f"`{key}` isn't an option of {program.name}",
                program.nearest(spelled),
            )
    _check_argument(name, node, program, argument, mistakes)
    own = frozenset(options)
    if seeded and "seed" in program.options and "seed" not in options:
        options["seed"] = Node("${matrix.seed}", node.mark)
    for key, child in defaults.items():
        if key in program.options and key not in options:
            options[key] = child
    return Step(
        name,
        program,
        argument,
        options,
        own,
        node.value.get("with"),
        tuple(listed(node.value.get("needs"))),
        _retained(node.value.get("retain"), mistakes),
        node.place,
    )


def _program(
    name: str, node: Node, programs: dict[str, Program], mistakes: Mistakes
) -> Program | None:
    run = node.value.get("run")
    if run is None:
        mistakes.add(node.place, f"step `{name}` has no `run:`", "such as `run: alpha-prune`")
        return None
    if run.value not in commands():
        mistakes.add(run.mark, f"`{run.value}` isn't a command", near_command(str(run.value)))
        return None
    return programs.setdefault(run.value, Program(run.value))


def _check_argument(
    name: str, node: Node, program: Program, argument: Node | None, mistakes: Mistakes
) -> None:
    needed = program.argument is not None and program.argument.required
    if argument is None and needed and "with" not in node.value:
        mistakes.add(
            node.place,
            f"step `{name}` has no `{program.takes[0]}:`, which {program.name} works on",
        )
    if argument is not None and isinstance(argument.value, list) and not program.many:
        mistakes.add(argument.place, f"step `{name}`: {program.name} works on one at a time")


def _retained(node: Node | None, mistakes: Mistakes) -> str:
    if node is None:
        return "all"
    if node.value not in RETAINED:
        hint = near_names(str(node.value), RETAINED)
        mistakes.add(node.mark, f"`retain: {node.value}` isn't a choice", hint)
        return "all"
    return str(node.value)


def _report(node: Node | None, steps: Mapping[str, Node], mistakes: Mistakes) -> Iterator[str]:
    for child in listed(node):
        if child.value not in steps:
            mistakes.add(
                child.mark, f"there is no step `{child.value}`", near_names(str(child.value), steps)
            )
        else:
            yield str(child.value)
