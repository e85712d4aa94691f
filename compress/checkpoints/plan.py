"""A plan: which modules change and how, as data that is printed, saved, compared and used again.

The file: `{"schema": 1, "command": …, "model": {"digest": …}, "rows": [{"module": …, "kind": …}]}`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.errors import RequestError, near_names

SCHEMA = 1


PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Plan:
    """What a command will do to one model.

    Attributes:
        command: the subcommand that made it.
        model_digest: digest of the checkpoint that it was made for.
        rows: one dict per module, with at least "module" and "kind".
        options: settings that produced it, for the reader.
    """

    command: str
    model_digest: str
    rows: list[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON types."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "model": {"digest": self.model_digest},
            "options": self.options,
            "rows": self.rows,
        }

    def text(self) -> str:
        """The plan file's text: a line per row, so that two plans can be compared by `diff`."""
        rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in self.rows)
        head = {key: value for key, value in self.as_dict().items() if key != "rows"}
        opening = json.dumps(head, allow_nan=False)[:-1]
        return f'{opening},\n "rows": [\n  {rows}\n ]}}\n'

    def digest(self) -> str:
        """sha256 of the command, model and rows; the options are only a remark."""
        content = {k: v for k, v in self.as_dict().items() if k != "options"}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write the plan file.

        Raises:
            RequestError: the place can't be written.
        """
        try:
            path.write_text(self.text(), encoding="utf-8")
        except OSError as error:
            raise RequestError(
                f"the plan can't be written to `{path}`: {error.strerror}"
            ) from error


def read_plan(path: Path, *, command: str, model_digest: str, modules: Iterable[str]) -> Plan:
    """Read a plan and check that it is one for this command and this model.

    Args:
        path: the plan file.
        command: the subcommand that is about to use it.
        model_digest: digest of the checkpoint that is about to be changed.
        modules: the names that rows may have.

    Raises:
        RequestError: not a plan, of another command, model or schema, or with modules that the
            model lacks or names twice.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"the plan `{path}` can't be read: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"the plan `{path}` isn't JSON: {error}") from error
    if not isinstance(given, dict) or not isinstance(given.get("rows"), list):
        raise RequestError(f"`{path}` isn't a plan: an object with `rows` is needed")
    if given.get("schema") != SCHEMA:
        raise RequestError(
            f"`{path}` has plan schema {given.get('schema')!r}; this version reads {SCHEMA}"
        )
    if given.get("command") != command:
        raise RequestError(f"`{path}` is a plan of `{given.get('command')}`, not of `{command}`")
    digest = (given.get("model") or {}).get("digest")
    if digest != model_digest:
        raise RequestError(
            f"`{path}` is a plan of another model: digest {digest}, MODEL has {model_digest}",
            "make one for this model with `--plan-out FILE --dry-run`",
        )
    _check_rows(path, given["rows"], set(modules))
    return Plan(command, model_digest, given["rows"], given.get("options") or {})


def _check_rows(path: Path, rows: list[Any], known: set[str]) -> None:
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("module"), str) or "kind" not in row:
            raise RequestError(f"`{path}`: row {number} needs a `module` and a `kind`")
        name = row["module"]
        if name not in known:
            raise RequestError(
                f"`{path}`: row {number} names `{name}`, which this model doesn't have",
                near_names(name, known, listed=4),
            )
        if name in seen:
            raise RequestError(f"`{path}`: `{name}` has two rows")
        seen.add(name)
