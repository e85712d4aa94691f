"""The receipt: what a command did to which model, how good it was before and after, what it cost.

It lies as `receipt.json` beside the weights. What was not measured is absent, never null or zero.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from compress.errors import RequestError
from compress.reports.records import (
    Comparison,
    Cost,
    DeviceInfo,
    Measures,
    ModelInfo,
    PlanInfo,
    decode,
    encode,
)

SCHEMA = 1
FILE_NAME = "receipt.json"
ITEMS_NAME = "items.json"
_WHERE = "give directories that a compress command wrote, or JSON of `eval --json`"
_SECRETS = ("--token",)
_VERSIONED = ("torch", "transformers", "accelerate", "datasets", "lm-eval", "numpy", "safetensors")


@dataclass(frozen=True)
class Receipt:
    """One run. `build` fills in what every command shares; see CONTRACT's OUT for the form.

    Attributes:
        command: the subcommand.
        seed: every random choice came from it.
        versions: of Python and the packages that shape the result.
        device: where it computed.
        argv: the command line, secrets masked; empty when called from Python.
        status: "ok" where the command did all that was asked.
        settings: the command's options, defaults included.
        model: what was read; None where nothing was.
        plan: the plan file beside the receipt.
        before, after: measures of the model read and of the model written.
        comparison: after minus before, paired on the same examples.
        cost: time, memory and passes.
        notes: plain sentences for the reader, such as what will not get faster and why.
        extra: what other commands add ("training", "cells", …).
    """

    command: str
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    device: DeviceInfo | None = None
    argv: tuple[str, ...] = ()
    status: str = "ok"
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelInfo | None = None
    plan: PlanInfo | None = None
    before: Measures | None = None
    after: Measures | None = None
    comparison: Comparison | None = None
    cost: Cost | None = None
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        command: str,
        *,
        seed: int,
        device: str | DeviceInfo = "cpu",
        argv: Sequence[str] | None = None,
        **parts: object,
    ) -> Receipt:
        """Make a receipt of this process.

        Args:
            command: the subcommand.
            seed: its seed.
            device: a torch device's name, or what `device_info` said.
            argv: the command line; None takes this process's, if it is `compress`.
            parts: any other field; `model`, `plan`, `before`, `after`, `comparison` and `cost` as
                records, dicts in CONTRACT's form, or anything with `as_receipt()`. Unknown names
                are kept as they are ("training", "cells").

        Raises:
            RunError: a number is NaN or infinite.
            ValueError: a part isn't in CONTRACT's form.
        """
        line = command_line() if argv is None else list(argv)
        info = device if isinstance(device, DeviceInfo) else device_info(device)
        given = {k: v.as_receipt() if hasattr(v, "as_receipt") else v for k, v in parts.items()}
        content = {
            "schema": SCHEMA,
            "command": command,
            "seed": seed,
            "argv": masked(line),
            "device": info,
            "versions": versions(),
            **{key: part for key, part in given.items() if not _is_empty(part)},
        }
        return cls.from_dict(encode(content))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Receipt:
        """Read a receipt from its JSON form.

        Raises:
            ValueError: a needed key is missing or has another type; names it.
        """
        parts = {key: part for key, part in data.items() if key != "schema"}
        if isinstance(parts.get("comparison"), list):
            # A study compares many cells, in rows; the typed field is for before against after.
            parts["study_comparison"] = parts.pop("comparison")
        return decode(cls, parts, "receipt")

    def as_dict(self) -> dict[str, Any]:
        """CONTRACT's JSON form.

        Raises:
            RunError: a number is NaN or infinite.
        """
        data = {**encode(self), "schema": SCHEMA, "argv": list(self.argv)}
        if "study_comparison" in data:
            data["comparison"] = data.pop("study_comparison")
        return data

    def text(self) -> str:
        """The file's text: keys sorted, so that two receipts can be compared by `diff`."""
        return (
            json.dumps(
                self.as_dict(), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False
            )
            + "\n"
        )

    def write(self, directory: Path) -> Path:
        """Write `receipt.json` into `directory` by one rename; returns its path.

        Beside a model its card, README.md, is written too.

        Raises:
            RunError: a number is NaN or infinite; nothing is written.
            OSError: the disk is full or the directory can't be written.
        """
        from compress.reports.card import write_card

        written = write_atomic(Path(directory) / FILE_NAME, self.text())
        write_card(Path(directory), self)
        return written

    @classmethod
    def read(cls, path: Path | str) -> Receipt:
        """Read a receipt from its file, or from the directory that holds it.

        Raises:
            RequestError: no receipt there, a half-written one, or one of a newer version.
        """
        file, data = read_json(path)
        if "command" not in data:
            raise RequestError(f"`{file}` isn't a receipt: it has no `command`")
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise RequestError(
                f"`{file}` isn't a receipt as this version reads it: {error}"
            ) from error


def _is_empty(part: object) -> bool:
    return part is None or (isinstance(part, (Mapping, list, tuple)) and not part)


def read_json(path: Path | str) -> tuple[Path, dict[str, Any]]:
    """Read receipt JSON of a schema that this version knows; returns the file and its content.

    Raises:
        RequestError: no such file, not JSON, half-written, or written by a newer version.
    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE_NAME
        if not file.is_file():
            deeper = any(Path(path).glob(f"*/{FILE_NAME}"))
            hint = f"its subdirectories have: `{path}/*`" if deeper else _WHERE
            raise RequestError(f"`{path}` has no {FILE_NAME}", hint)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RequestError(f"there is no `{path}`") from error
    except OSError as error:
        raise RequestError(f"`{file}` can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"`{file}` isn't a receipt: it isn't text") from error
    except ValueError as error:
        raise RequestError(
            f"`{file}` isn't complete JSON: {error}", "it was half-written; run that command again"
        ) from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise RequestError(f"`{file}` isn't a receipt: it has no `schema` number")
    if schema > SCHEMA:
        raise RequestError(
            f"`{file}` was written by a newer compress: schema {schema}, this version reads up to "
            f"{SCHEMA}",
            "upgrade compress to read it",
        )
    return file, cast("dict[str, Any]", data)


def write_atomic(path: Path, text: str) -> Path:
    """Write `text` so that `path` is at every moment the old file or the whole new one.

    Raises:
        OSError: the disk is full or the place can't be written; no partial file is left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def write_items(directory: Path, items: Mapping[str, Any]) -> Path:
    """Write per-example outcomes beside a receipt, so that reports can pair two runs.

    Args:
        directory: where receipt.json lies.
        items: {"perplexity": {SPEC: [loss of each window]}, "tasks": {TASK: {item: score}}} of the
            model written (`after`).
    """
    text = json.dumps({"schema": SCHEMA, **encode(items)}, sort_keys=True, allow_nan=False)
    return write_atomic(Path(directory) / ITEMS_NAME, text + "\n")


def read_items(path: Path | str) -> dict[str, Any]:
    """Per-example outcomes beside the receipt at `path`; empty where none were kept."""
    place = Path(path)
    file = (place if place.is_dir() else place.parent) / ITEMS_NAME
    if not file.is_file() or (place.is_file() and place.name != FILE_NAME):
        return {}
    return read_json(file)[1]


def versions() -> dict[str, str]:
    """Versions of Python, compress and the packages that shape results; imports none of them."""
    from compress import __version__

    found = {"python": platform.python_version(), "compress": __version__}
    for name in _VERSIONED:
        with suppress(metadata.PackageNotFoundError):
            found[name.replace("-", "_")] = metadata.version(name)
    return found


def device_info(device: object = "cpu") -> DeviceInfo:
    """Name the device of a run.

    Args:
        device: a torch.device or its name; "auto" counts as what torch would take first.
    """
    import torch

    from compress.checkpoints.placement import resolve_device

    name = resolve_device("auto") if str(device) == "auto" else str(device)
    kind = name.partition(":")[0]
    if kind == "cuda":
        return DeviceInfo(torch.cuda.get_device_name(name), 1, {"type": "cuda"})
    if kind == "cpu":
        threads = {"type": "cpu", "threads": torch.get_num_threads()}
        return DeviceInfo(processor_name(), 1, threads)
    return DeviceInfo(kind, 1, {"type": kind})


def processor_name() -> str:
    """The CPU's model name, as far as the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "cpu"


def command_line() -> list[str]:
    """This process's command line where the process is `compress`, else empty."""
    if not sys.argv:
        return []
    program = Path(sys.argv[0])
    ours = program.stem == "compress" or program.parts[-2:] == ("compress", "__main__.py")
    return ["compress", *sys.argv[1:]] if ours else []


def masked(argv: Sequence[str]) -> list[str]:
    """`argv` without secrets: a receipt is published with its model."""
    out: list[str] = []
    for word in argv:
        option = word.partition("=")[0]
        if out and out[-1] in _SECRETS:
            out.append("***")
        elif "=" in word and option in _SECRETS:
            out.append(f"{option}=***")
        else:
            out.append(word)
    return out
