"""What a run keeps of its steps: outputs, logs and records, and finished ones of earlier runs.

    OUT.partial/steps/CELL/STEP        outputs, each put there whole by its own command
    OUT.partial/records/CELL/STEP.json which digest it has, how it went, how long it took
    OUT.partial/logs/CELL/STEP.log     its stderr; .out its stdout; .progress where it stands

A finished step of any earlier run is taken by its digest: its files are linked, not copied, where
the file system can.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compress.checkpoints.durable import partial_path, writing
from compress.errors import RequestError
from compress.recipes.graph import RECEIPT, Instance
from compress.reports.receipt import write_atomic

RUN = "run.json"
OK, FAILED, RUNNING, SKIPPED = "ok", "failed", "running", "skipped"
_LIGHT = {RECEIPT, "plan.json", "items.json", "grid.jsonl", "metrics.jsonl", "loss.png"}


@dataclass(frozen=True)
class Record:
    """How one step went.

    Attributes:
        place: where its output lies, CELL/STEP; its name.
        step, command: its name in the recipe, and what it ran.
        key: the digest of all that its result depends on.
        status: OK, FAILED, RUNNING or SKIPPED.
        seconds: how long it took when it was run.
        finished: when, as seconds since 1970.
        cached: whether this run took it from an earlier one.
        argv: its command line.
        files: sizes of its files by path below the run's directory.
        light: only its receipt and tables were kept.
        error, hint, code: how it failed.
    """

    place: str
    step: str
    command: str
    key: str = ""
    status: str = OK
    seconds: float = 0.0
    finished: float = 0.0
    cached: bool = False
    argv: tuple[str, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)
    light: bool = False
    error: str = ""
    hint: str = ""
    code: int = 0

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Record:
        """A record from its JSON form; what it doesn't know is passed over."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        return cls(**{**known, "argv": tuple(known.get("argv", ()))})

    def as_dict(self) -> dict[str, Any]:
        """JSON types; what is empty is absent."""
        return {k: v for k, v in asdict(self).items() if v not in ("", 0, (), {}, False)}

    @property
    def bytes(self) -> int:
        """Size of its files."""
        return sum(self.files.values())


class Store:
    """The steps of a run under way.

    Args:
        root: OUT.partial.
        earlier: finished steps of other runs.
    """

    def __init__(self, root: Path, earlier: Sequence[tuple[Path, Record]] = ()) -> None:
        self.root = root
        self.steps = root / "steps"
        self.known: dict[str, tuple[Path, Record]] = {}
        for base, record in [*earlier, *_own(root)]:
            if record.status == OK and record.key:
                self.known[record.key] = (base, record)

    def log(self, instance: Instance, ending: str) -> Path:
        """A log file of a step."""
        return self.root / "logs" / f"{instance.place}.{ending}"

    def record(self, instance: Instance) -> Record | None:
        """What this run knows of a step so far."""
        return _read(self.root / "records" / f"{instance.place}.json")

    def put(self, record: Record) -> None:
        """Keep a record; when this returns, it survives a crash."""
        path = self.root / "records" / f"{record.place}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path):
            write_atomic(path, json.dumps(record.as_dict(), indent=1) + "\n")

    def find(self, key: str) -> Record | None:
        """A finished step with this digest whose files are all there."""
        base, record = self.known.get(key, (None, None))
        if base is None or record is None or not _intact(base, record):
            return None
        return record

    def take(self, instance: Instance, key: str) -> Record:
        """Put a finished step (`find` has found it) where this run has it."""
        base, found = self.known[key]
        files = {}
        for name, size in found.files.items():
            target = _moved(name, found.place, instance.place)
            files[target] = size
            _link(base / name, self.steps / target)
        record = Record(**{**asdict(found), "place": instance.place, "step": instance.step.name,
                           "files": files, "cached": True})  # fmt: skip
        self.put(record)
        return record

    def clear(self, instance: Instance, partial: bool) -> None:
        """Remove what an earlier attempt left; `partial` its journal too."""
        for place in dict.fromkeys((instance.place, instance.files)):
            _remove(self.steps / place)
        if partial:
            _remove(self.journal(instance).parent)

    def journal(self, instance: Instance) -> Path:
        """Where the step's own command keeps its journal."""
        return partial_path(self.steps / instance.place) / "journal.json"

    def files(self, instance: Instance) -> dict[str, int]:
        """The files of a finished step with their sizes."""
        found = {}
        for place in dict.fromkeys((instance.place, instance.files)):
            for path in sorted((self.steps / place).rglob("*")):
                if path.is_file():
                    found[path.relative_to(self.steps).as_posix()] = path.stat().st_size
        return found

    def lighten(self, record: Record) -> Record:
        """Drop the weights of a finished step, keep what it measured."""
        kept = {}
        for name, size in record.files.items():
            inside = name.removeprefix(f"{record.place}/")
            if inside in _LIGHT or inside == name:
                kept[name] = size
            else:
                (self.steps / name).unlink(missing_ok=True)
        lighter = Record(**{**asdict(record), "files": kept, "light": True})
        self.put(lighter)
        return lighter

    def receipt(self, record: Record) -> dict[str, Any]:
        """The receipt of a finished step.

        Raises:
            RequestError: it left none.
        """
        base, found = self.known.get(record.key, (self.steps, record))
        path = self.steps / record.place / RECEIPT
        if not path.is_file():  # of an earlier run, not taken over yet
            path = base / found.place / RECEIPT
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise RequestError(f"step `{record.place}` left no {RECEIPT}") from error

    def deliver(self, records: Sequence[Record], result: Path) -> None:
        """Link every finished step and its logs into what becomes OUT."""
        for record in records:
            for name in record.files:
                _link(self.steps / name, result / name)
            for ending in ("log",):
                log = self.root / "logs" / f"{record.place}.{ending}"
                if log.is_file() and log.stat().st_size:
                    _link(log, result / "logs" / f"{record.place}.{ending}")
            receipt = result / record.place / RECEIPT
            if receipt.is_file():
                relocate(receipt, str(self.steps), str(_out(self.root)))


def relocate(receipt: Path, before: str, after: str) -> None:
    """Let a receipt name files where they lie now; the file is replaced, not changed in place."""
    text = receipt.read_text(encoding="utf-8")
    moved = text.replace(json.dumps(before, ensure_ascii=False)[1:-1],
                         json.dumps(after, ensure_ascii=False)[1:-1])  # fmt: skip
    if moved != text:
        write_atomic(receipt, moved)


def earlier_runs(output: Path, reuse: Sequence[str | Path]) -> list[tuple[Path, Record]]:
    """Finished steps of the run that OUT holds, and of others.

    Raises:
        RequestError: one of `reuse` is no run.
    """
    found = list(_finished(output)) if (output / RUN).is_file() else []
    for other in reuse:
        place = Path(other).expanduser()
        whole = (place / RUN).is_file()
        steps = list(_finished(place) if whole else _own(partial_path(place)))
        if not steps and not (place / RUN).is_file():
            raise RequestError(
                f"`--reuse {other}` is no run: it has no {RUN}", "name an OUT of `compress run`"
            )
        found += steps
    return found


def is_run(output: Path) -> bool:
    """Whether a directory is what `compress run` left."""
    try:
        return json.loads((output / RUN).read_text(encoding="utf-8")).get("command") == "run"
    except (OSError, ValueError, AttributeError):
        return False


def _finished(output: Path) -> Iterator[tuple[Path, Record]]:
    try:
        steps = json.loads((output / RUN).read_text(encoding="utf-8"))["steps"]
        for data in steps:
            yield output, Record.read(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"`{output / RUN}` is damaged: {str(error)[:100]}") from error


def _own(root: Path) -> Iterator[tuple[Path, Record]]:
    for path in sorted((root / "records").rglob("*.json")):
        record = _read(path)
        if record is not None:
            yield root / "steps", record


def _read(path: Path) -> Record | None:
    try:
        return Record.read(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _intact(base: Path, record: Record) -> bool:
    for name, size in record.files.items():
        try:
            changed = (base / name).stat().st_size != size
        except OSError:
            return False
        # A receipt grows or shrinks when its paths are set right.
        if changed and os.path.basename(name) != RECEIPT:
            return False
    return bool(record.files)


def _moved(name: str, before: str, after: str) -> str:
    """A file's path under the step's place in this run."""
    for ending in (".files/", "/"):
        if name.startswith(before + ending):
            return after + ending + name.removeprefix(before + ending)
    return name


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where that can't be."""
    if target.exists() and os.path.samefile(source, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    with writing(target):
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)


def _remove(place: Path) -> None:
    with suppress(FileNotFoundError):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink()


def _out(root: Path) -> Path:
    return root.with_name(root.name.removesuffix(".partial"))
