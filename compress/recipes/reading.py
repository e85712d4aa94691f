"""From a recipe's files to one tree: includes, the quick form and --set, each value with its place.

A file comes after what it includes; mappings are joined name by name, anything else is replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import compress
from compress.errors import RequestError, near_names
from compress.recipes.marks import Mark, Node, read_file, read_text

QUICK = "quick"
_SET = "--set"


@dataclass(frozen=True)
class Source:
    """A recipe as read.

    Attributes:
        name: its file's name without the ending.
        path: the file.
        tree: its content with includes, quick form and overrides worked in.
        quick: whether it is the quick form.
        overrides: `--set` as given.
    """

    name: str
    path: Path
    tree: Node
    quick: bool
    overrides: tuple[str, ...] = ()


def read_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Source:
    """Read a recipe.

    Args:
        recipe: a file, or the name of a shipped recipe.
        overrides: `key=value` each; the value is YAML. A key is a name of `vars`, `quick`, `seed`,
            `seeds`, or a dotted path from the top such as `steps.prune.sparsity`, `matrix.method`.

    Raises:
        RequestError: no such recipe, a file that can't be read, a cycle of includes, or an
            override of something that isn't there; names file, line and column.
    """
    path = find_recipe(recipe)
    tree = with_includes(path, (), shown=str(recipe) if Path(recipe) == path else path.name)
    sets = [_parse_set(text) for text in overrides]
    quick = _is_quick(tree, [pair for pair in sets if pair[0] == [QUICK]])
    overlay = tree.value.get(QUICK)
    tree = Node({k: v for k, v in tree.value.items() if k != QUICK}, tree.mark)
    if quick and overlay is not None:
        tree = merged(tree, overlay)
    for keys, value in sets:
        if keys != [QUICK]:
            tree = _put(tree, keys, value)
    return Source(path.stem, path, tree, quick, tuple(overrides))


def find_recipe(recipe: str | Path) -> Path:
    """Return the file of a recipe named by path, or by its name if it is shipped.

    Raises:
        RequestError: there is none.
    """
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    names = shipped_recipes()
    if str(recipe) in names:
        return names[str(recipe)]
    if path.is_dir():
        raise RequestError(f"`{recipe}` is a directory, not a recipe")
    raise RequestError(f"there is no recipe `{recipe}`", near_names(str(recipe), names, 30))


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that the package ships, by name."""
    package = Path(compress.__file__).resolve().parent
    for root in (package / "shipped" / "recipes", package.parent / "recipes"):
        if root.is_dir():
            return {path.stem: path for path in sorted(root.glob("*.yaml"))}
    return {}


def merged(base: Node, over: Node) -> Node:
    """`base` with what `over` says: mappings name by name, anything else replaced."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    both = dict(base.value)
    for name, node in over.value.items():
        both[name] = merged(both[name], node) if name in both else node
    return Node(both, over.mark, over.key)


def with_includes(path: Path, above: tuple[Path, ...], shown: str) -> Node:
    """Read a file behind what it includes.

    Args:
        path: the file.
        above: files that include it, outermost first.
        shown: what marks call it.

    Raises:
        RequestError: a file that can't be read, or a circle of includes.
    """
    own = read_file(path, shown)
    if not isinstance(own.value, dict):
        raise RequestError(f"{own.mark}: a recipe is a mapping, with `steps:`")
    include = own.value.get("include")
    tree = Node({k: v for k, v in own.value.items() if k != "include"}, own.mark)
    base: Node | None = None
    for node in _listed(include):
        target = _included(node, path)
        chain = (*above, path.resolve())
        if target.resolve() in chain:
            files = " includes ".join(p.name for p in (*chain, target.resolve()))
            raise RequestError(f"{node.mark}: a cycle of includes: {files}")
        part = with_includes(target, chain, str(node.value))
        base = part if base is None else merged(base, part)
    return tree if base is None else merged(base, tree)


def _listed(node: Node | None) -> Iterable[Node]:
    if node is None:
        return []
    return node.value if isinstance(node.value, list) else [node]


def _included(node: Node, path: Path) -> Path:
    """The file that an include names: beside the file that includes it, or shipped."""
    if not isinstance(node.value, str):
        raise RequestError(f"{node.place}: `include` names files")
    target = path.parent / Path(node.value).expanduser()
    if target.is_file():
        return target
    names = shipped_recipes()
    if node.value in names:
        return names[node.value]
    near = near_names(node.value, [*(p.name for p in path.parent.glob("*.yaml")), *names])
    raise RequestError(f"{node.mark}: there is no `{node.value}` to include", near)


def _parse_set(text: str) -> tuple[list[str], Node]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise RequestError(f"`{_SET} {text}` isn't key=value", f"such as `{_SET} quick=true`")
    node = read_text(value, f"`{_SET} {key.strip()}`") if value.strip() else None
    found = Node(node.value if node else "", Mark(f"{_SET} {key.strip()}"))
    return key.strip().split("."), found


def _is_quick(tree: Node, sets: Sequence[tuple[list[str], Node]]) -> bool:
    if not sets:
        return False
    value = sets[-1][1].value
    if not isinstance(value, bool):
        raise RequestError(f"`{_SET} quick={value}`: true or false is needed")
    if value and QUICK not in tree.value:
        raise RequestError(
            f"{tree.mark.file} has no quick form", "a recipe's `quick:` section says what differs"
        )
    if value and not isinstance(tree.value[QUICK].value, dict):
        raise RequestError(f"{tree.value[QUICK].place}: `quick` is a mapping of what differs")
    return value


def _put(tree: Node, keys: list[str], value: Node) -> Node:
    """Replace what a dotted path, or the name of a variable, leads to."""
    if len(keys) == 1 and keys[0] not in ("seed", "seeds"):
        keys = ["vars", *keys]
    known = tree.value.get(keys[0])
    if keys[0] == "vars":
        names = known.value if known is not None and isinstance(known.value, dict) else {}
        if len(keys) < 2 or keys[1] not in names:
            wanted = ".".join(keys[1:])
            raise RequestError(
                f"`{_SET} {wanted}=…`: the recipe has no variable `{wanted}`",
                near_names(wanted, {*names, QUICK, "seed", "seeds"}),
            )
    elif keys[0] in ("steps", "matrix"):
        names = known.value if known is not None and isinstance(known.value, dict) else {}
        if len(keys) < 2 or keys[1] not in names:
            wanted = ".".join(keys[1:])
            raise RequestError(
                f"`{_SET} {'.'.join(keys)}=…`: `{keys[0]}` has no `{wanted}`",
                near_names(wanted, names),
            )
    elif keys[0] not in ("defaults", "env", "seed", "seeds"):
        raise RequestError(
            f"`{_SET} {'.'.join(keys)}=…`: a recipe has no `{keys[0]}` to set",
            near_names(keys[0], ("vars", "steps", "matrix", "defaults", "env", "seed", "seeds")),
        )
    return _replaced(tree, keys, value)


def _replaced(tree: Node, keys: list[str], value: Node) -> Node:
    if not keys:
        return value
    inner = tree.value if isinstance(tree.value, dict) else {}
    below = inner.get(keys[0], Node({}, value.mark))
    node = _replaced(below, keys[1:], value)
    return Node({**inner, keys[0]: node}, tree.mark, tree.key)
