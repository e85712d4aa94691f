"""A checkpoint with one Python file, by which transformers alone loads an edited model.

`config.json` names the file (`auto_map`), holds the edits under a key of their own, and has a model
type of its own: without `trust_remote_code=True` loading ends in an error, never in a model without
its edits. The file holds the very sources of the kinds that the model has, one function a source
file, so there is no second copy of them to keep.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TypeGuard

from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

import compress
from compress.checkpoints import edits
from compress.checkpoints.record import config_of, forget
from compress.checkpoints.save import Workspace, copy_companions, writing
from compress.checkpoints.source import Source
from compress.errors import RequestError
from compress.progress import Progress

FILE = "modeling_compressed.py"
EDITS = "compressed_modules"
_PREFIX = "compressed_"
_EDITS = "compress.checkpoints.edits."

_HEAD = '''"""{name}: {base} with edits made by `compress` {version}.

    transformers.{auto}.from_pretrained(DIRECTORY, trust_remote_code=True)

needs transformers and torch, nothing else. Written by `compress export --to remote-code`; the edits
stand in config.json under "{key}". Apache License 2.0.
"""

from __future__ import annotations

from types import SimpleNamespace

from {config_module} import {config}
{imports}


class RequestError(ValueError):
    """An edit that its module can't have."""

    def __init__(self, message, hint=None):
        super().__init__(message if hint is None else f"{{message}}; {{hint}}")


def near_names(name, known, listed=12):
    """What could have been meant."""
    return f"known: {{', '.join(sorted(known)[:listed])}}"


errors = SimpleNamespace(RequestError=RequestError, near_names=near_names)

'''

_TAIL = '''
KINDS = {{{kinds}}}


def make_edits(model, modules):
    """Change the modules, parents first; names without their head where the class lacks one."""
    prefix, made = f"{{model.base_model_prefix}}.", []
    for name, fields in sorted(modules.items(), key=lambda item: (item[0].count("."), item[0])):
        for here in (name, name.removeprefix(prefix)):
            try:
                old = model.get_submodule(here)
            except AttributeError:
                continue
            new = KINDS[fields["kind"]].make(old, fields, here)
            if new is not old:
                model.set_submodule(here, new.train(old.training))
            made.append((here, fields))
            break
        else:
            if name.startswith(prefix) or hasattr(model, model.base_model_prefix):
                raise RequestError(f"no module `{{name}}` to edit")
    for name, fields in made:
        if KINDS[fields["kind"]].link is not None:
            KINDS[fields["kind"]].link(model, fields, name)


class {config_name}({config}):
    """The family's config, of a model type that no stock class takes for its own."""

    model_type = "{model_type}"

'''

_CLASS = '''
class {name}({base}):
    """{base} with the edits of its config."""

    config_class = {config_name}

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        make_edits(self, config.{key})
        self.post_init()

'''


class Remote:
    """The export of a checkpoint with the code of its edits."""

    def __init__(self, source: Source, progress: Progress) -> None:
        self.source = source
        self.modules: list[str] = []

    def write(self, workspace: Workspace) -> None:
        """Save the model with its file of code.

        Raises:
            RequestError: it has no edits, or no Auto class loads it.
        """
        with writing(workspace.result, "free some space there, then try again"):
            self.modules = write_remote(self.source.load(), workspace.result)
        copy_companions(self.source.companions(), workspace.result)

    def notes(self, before: object, after: object) -> tuple[str, ...]:
        """Say what was gained and what was lost."""
        return (
            "Gained: transformers alone loads it, with `trust_remote_code=True`; lm-eval too.",
            f"Lost: whoever loads it runs {FILE}, and commands of this package take the original.",
        )


def write_remote(model: PreTrainedModel, place: Path) -> list[str]:
    """Save an edited model with its code; the model loses its marks of edits.

    Args:
        model: with edits; weights stored without their zeros are stored dense.
        place: the directory to fill.

    Returns:
        The modules that the file edits.

    Raises:
        RequestError: there are none, or the model's own code isn't part of transformers.
    """
    config = config_of(model)
    found = {} if config is None else config.modules
    modules = {name: dict(fields) for name, fields in found.items() if fields["kind"] != "bitmask"}
    if not modules:
        raise RequestError(
            "the model has no edits that need code",
            "`--to stock` writes what loads everywhere",
        )
    heads = classes_of(model)
    text = code(type(model), modules, heads)
    forget(model)
    # The family's own conversions go by model type, which is a new one: names as in memory.
    model.save_pretrained(place, max_shard_size="5GB", save_original_format=False)
    _describe(place / "config.json", type(model), modules, heads)
    (place / FILE).write_text(text, encoding="utf-8")
    return list(modules)


def classes_of(model: PreTrainedModel) -> dict[str, type[PreTrainedModel]]:
    """Return the Auto classes that load the model, or its part without a head, and their classes.

    Raises:
        RequestError: no Auto class of transformers does.
    """
    kind, config = type(model), type(model.config)
    found: dict[str, type[PreTrainedModel]] = {}
    for name, auto in sorted(vars(modeling_auto).items()):
        mapping = getattr(auto, "_model_mapping", None)
        if not name.startswith("AutoModel") or mapping is None or config not in mapping:
            continue
        classes = mapping[config]
        classes = classes if isinstance(classes, tuple) else (classes,)
        if kind in classes or name == "AutoModel":
            found[name] = kind if kind in classes else classes[0]
    if kind not in found.values():
        raise RequestError(
            f"`{kind.__name__}` isn't loaded by any Auto class of transformers",
            "load the checkpoint after `import compress` instead",
        )
    return found


def code(
    kind: type[PreTrainedModel],
    modules: Mapping[str, edits.Fields],
    heads: Mapping[str, type[PreTrainedModel]],
) -> str:
    """Return the Python file for a class with edits.

    Args:
        kind: the stock class of the model.
        modules: its edits.
        heads: Auto class to stock class, as `classes_of` finds them.
    """
    config = kind.config_class
    assert config is not None
    classes = dict.fromkeys([*heads.values(), kind])
    auto = next(name for name, cls in heads.items() if cls is kind)
    used = sorted({fields["kind"] for fields in modules.values()})
    imports = "\n".join(f"from {cls.__module__} import {cls.__name__}" for cls in classes)
    names = {
        "config": config.__name__, "config_module": config.__module__, "key": EDITS,
        "config_name": f"Compressed{config.__name__}",
        "model_type": _PREFIX + config.model_type,
    }  # fmt: skip
    head = _HEAD.format(
        name=f"Compressed{kind.__name__}", base=kind.__name__, version=compress.__version__,
        auto=auto, imports=imports, **names,
    )  # fmt: skip
    sources = "\n\n".join(_as_function(module) for module in _needed(used))
    kinds = ", ".join(f'"{name}": {name}.KIND' for name in used)
    tail = _TAIL.format(kinds=kinds, **names)
    bodies = [
        _CLASS.format(name=f"Compressed{c.__name__}", base=c.__name__, **names) for c in classes
    ]
    return f"{head}\n{sources}\n\n{tail}{''.join(bodies)}".rstrip() + "\n"


def _describe(
    path: Path,
    kind: type[PreTrainedModel],
    modules: Mapping[str, edits.Fields],
    heads: Mapping[str, type[PreTrainedModel]],
) -> None:
    """Write the edits and the way to the code into a saved config."""
    stem = Path(FILE).stem
    config = json.loads(path.read_text(encoding="utf-8"))
    stock = kind.config_class
    assert stock is not None
    config["model_type"] = _PREFIX + stock.model_type
    config["architectures"] = [f"Compressed{kind.__name__}"]
    config["auto_map"] = {"AutoConfig": f"{stem}.Compressed{stock.__name__}"} | {
        name: f"{stem}.Compressed{cls.__name__}" for name, cls in heads.items()
    }
    config[EDITS] = {name: dict(fields) for name, fields in modules.items()}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _needed(kinds: Iterable[str]) -> list[ModuleType]:
    """The source files of the kinds and of what they import, each after what it needs."""
    order: dict[str, ModuleType] = {}

    def add(module: ModuleType) -> None:
        if module.__name__ in order:
            return
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if _is_ours(node) and node.module != "compress.errors":
                add(importlib.import_module(str(node.module)))
        order[module.__name__] = module

    for kind in kinds:
        add(inspect.getmodule(edits.KINDS[kind].make) or importlib.import_module(_EDITS + kind))
    return list(order.values())


def _is_ours(node: ast.AST) -> TypeGuard[ast.ImportFrom]:
    return isinstance(node, ast.ImportFrom) and str(node.module).startswith("compress.")


def _as_function(module: ModuleType) -> str:
    """A source file as a function that returns its names, so that no two files' names meet."""
    source = inspect.getsource(module)
    lines = source.splitlines()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if not isinstance(node, ast.ImportFrom) or not (future or _is_ours(node)):
            continue
        assert node.end_lineno is not None
        for i in range(node.lineno - 1, node.end_lineno):
            lines[i] = ""
        if not future:
            where = str(node.module).rpartition(".")[2]
            taken = ((a.asname or a.name, a.name) for a in node.names)
            given = "; ".join(f"{new} = {where}.{old}" for new, old in taken)
            lines[node.lineno - 1] = " " * node.col_offset + given
    name = module.__name__.rpartition(".")[2]
    body = textwrap.indent("\n".join(lines).strip(), "    ")
    return (
        f"def _{name}():\n{body}\n    return SimpleNamespace(**locals())\n\n\n{name} = _{name}()\n"
    )
