"""Results that appear whole or not at all: the directory in which a run builds its output.

A run works in `OUT.partial`, beside OUT and so on the same file system:

    OUT.partial/lock           held (flock) while a process works here
    OUT.partial/journal.json   whose run this is: the fingerprint that a resume must match
    OUT.partial/result/        what becomes OUT
    OUT.partial/replaced/      the OUT being replaced, between the two renames of a commit
    OUT.partial/…              anything a method keeps for a resume: shards, caches

`os.rename(OUT.partial/result, OUT)` is the commit point. Until then OUT is absent or as before;
a crash between the two renames of an overwrite is undone by the next run.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from compress.checkpoints.durable import copy_companions, partial_path, sync, write_json, writing
from compress.errors import RequestError, RunError
from compress.numerics.ranks import ALONE, Team

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs into one OUT are the user's to avoid
    fcntl = None  # type: ignore[assignment]

__all__ = ["Workspace", "check_output", "copy_companions", "partial_path", "write_json", "writing"]

_SCHEMA = 1
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def check_output(
    output: str | Path, *, overwrite: bool = False, source: str | Path | None = None
) -> Path:
    """Refuse an output directory that can't be used; writes nothing.

    Args:
        output: the directory that the result is to become.
        overwrite: whether a directory with content may be replaced.
        source: the local directory of the model that is read, if any.

    Returns:
        The output with every symbolic link resolved.

    Raises:
        RequestError: it is a file, a mount point or the current directory; it is the source,
            lies in it or holds it; it has content and `overwrite` is False.
    """
    named, output = output, Path(output).expanduser().resolve()
    if source is not None:
        _check_source(named, output, Path(source).expanduser().resolve())
    if output.exists() and not output.is_dir():
        raise RequestError(
            f"output `{named}` is a file, not a directory", "choose another --output"
        )
    if output == Path.cwd() or output.is_mount():
        what = "the current directory" if output == Path.cwd() else "a mount point"
        raise RequestError(
            f"output `{named}` is {what}, which can't be put in place by one rename",
            f"choose a directory inside it, such as `{Path(named) / 'out'}`",
        )
    held = output if output.exists() else partial_path(output) / "replaced"
    if held.is_dir() and any(held.iterdir()) and not overwrite:
        raise RequestError(
            f"output `{named}` exists and is not empty",
            "choose another --output, or replace it with --overwrite",
        )
    return output


def _check_source(named: str | Path, output: Path, source: Path) -> None:
    """Refuse an output, or a working directory, that touches the source."""
    relation = None
    if output == source:
        relation = "is the source model's directory"
    elif output.is_relative_to(source):
        relation = f"lies inside the source model's directory `{source}`"
    elif source.is_relative_to(output):
        relation = f"holds the source model's directory `{source}`"
    elif source.is_relative_to(partial_path(output)):
        relation = f"is where `{source}`, the source model, is still being made"
    if relation:
        raise RequestError(f"output `{named}` {relation}", "choose another --output")


class Workspace:
    """The directory in which a run builds its result; see the module's text for what it holds.

    Use it as a context manager: leaving it gives the lock back and keeps what is there for a
    resume, unless `commit` or `discard` was called.
    """

    def __init__(
        self, output: Path, lock: IO[str] | None, overwrite: bool, committed: bool
    ) -> None:
        self.output = output
        self.path = partial_path(output)
        self.result = self.path / "result"
        self.committed = committed  # OUT is in place: nothing is left to do
        self._overwrite = overwrite
        self._lock = lock

    @classmethod
    def open(
        cls,
        output: str | Path,
        *,
        overwrite: bool = False,
        resume: bool = False,
        fingerprint: Mapping[str, Any] | None = None,
        source: str | Path | None = None,
        team: Team = ALONE,
    ) -> Workspace:
        """Begin a run, or go on with an interrupted one.

        Without `resume` the leftovers of an interrupted run are thrown away. With it they are
        kept, save for `result`, which is always empty at first: whoever saves into it starts
        clean. A run that was killed after its commit resumes as `committed`.

        Args:
            output: the directory that the result is to become; parents are made.
            overwrite: whether `commit` may replace a directory with content.
            resume: go on from the journal in `OUT.partial`.
            fingerprint: plain JSON that says which run this is: model, data, plan, options.
            source: the local directory of the model that is read, if any.
            team: the processes that share the workspace. Rank 0 makes and locks it; the others are
                given one that only tells where things lie.

        Raises:
            RequestError: see `check_output`; also when there is nothing to resume, when the
                fingerprint differs (the key and both values are named), when another process
                works there, or when the place can't be written.
            RunError: the disk is full.
        """
        resolved = Path(output).expanduser().resolve()
        if not team.first:
            return cls(resolved, None, overwrite, team.from_first(lambda: False))
        opened = cls._open(resolved, output, overwrite, resume, fingerprint, source)
        team.from_first(lambda: opened.committed)
        return opened

    @classmethod
    def _open(
        cls,
        resolved: Path,
        output: str | Path,
        overwrite: bool,
        resume: bool,
        fingerprint: Mapping[str, Any] | None,
        source: str | Path | None,
    ) -> Workspace:
        path = partial_path(resolved)
        if not (resume and _is_committed(path, resolved)):
            check_output(output, overwrite=overwrite, source=source)
        wanted = json.loads(json.dumps(dict(fingerprint or {})))
        if resume:
            _check_journal(path, wanted)
        elif path.exists() and not _is_ours(path):
            raise RequestError(
                f"`{path}` is in the way: it is no interrupted run of this program",
                "move it away or choose another --output",
            )
        with writing(path), _denied(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(path)
            try:
                if resume:
                    _check_journal(path, wanted)  # again, now that nobody else can change it
                _restore_replaced(path, resolved)
                committed = resume and _is_committed(path, resolved)
                if not committed:
                    _prepare(path, wanted, keep=resume)
            except BaseException:
                lock.close()
                raise
        return cls(resolved, lock, overwrite, committed)

    def commit(self) -> None:
        """Put the result in place: flush it to the disk, rename it to OUT, drop the workspace.

        Files get the mode that the umask gives new files (safetensors writes 0600).

        Raises:
            RunError: the disk is full, the result holds a symbolic link, or OUT can't be
                replaced; OUT is then as it was.
        """
        replaced = self.path / "replaced"
        with writing(self.output):
            mode = stat.S_IMODE((self.path / "journal.json").stat().st_mode)
            _flush_tree(self.result, mode)
            sync(self.path)
            if self._overwrite and self.output.exists() and any(self.output.iterdir()):
                os.rename(self.output, replaced)
            try:
                os.rename(self.result, self.output)
            except OSError as error:
                _restore_replaced(self.path, self.output)
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise RunError(
                        f"output `{self.output}` was filled by something else during the run",
                        "empty it, or add --overwrite, then run again with --resume",
                    ) from error
                raise
            sync(self.output.parent)
        self.committed = True
        self.discard()

    def discard(self) -> None:
        """Throw the workspace away; OUT is not touched."""
        _restore_replaced(self.path, self.output)
        journal = self.path / "journal.json"
        if not self.committed:
            journal.unlink(missing_ok=True)  # first: half a workspace must not resume
        for entry in self.path.iterdir():
            if entry.name not in ("lock", "journal.json"):
                _remove(entry)
        journal.unlink(missing_ok=True)  # last: until then a resume sees that all is done
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let another process work here; what is there stays for a resume."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _take_lock(path: Path) -> IO[str]:
    """Lock the workspace for this process."""
    while True:
        lock = (path / "lock").open("w", encoding="utf-8")
        if fcntl is None:
            return lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise RequestError(
                f"another process is writing `{path}`",
                "wait until it ends, or choose another --output",
            ) from error
        except OSError:
            return lock  # a file system without locks
        # whoever held it may have dropped the directory meanwhile: lock the file that is there now
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name)):
                return lock
        lock.close()
        path.mkdir(parents=True, exist_ok=True)


def _prepare(path: Path, fingerprint: dict[str, Any], keep: bool) -> None:
    """Make the workspace's content: all new, or (`keep`) only a new `result`."""
    if not keep:
        with contextlib.suppress(FileNotFoundError):
            (path / "journal.json").unlink()
    result = path / "result"
    for entry in path.iterdir():
        if not keep and entry.name not in ("lock", "result"):
            _remove(entry)
    result.mkdir(exist_ok=True)
    for entry in result.iterdir():  # emptied, not removed: a missing result means committed
        _remove(entry)
    if not keep:
        write_json(path / "journal.json", {"schema": _SCHEMA, "fingerprint": fingerprint})


def _remove(entry: Path) -> None:
    """Remove a file, a link or a whole directory."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _restore_replaced(path: Path, output: Path) -> None:
    """Put back the OUT that a killed commit had moved aside."""
    replaced = path / "replaced"
    if replaced.is_dir() and not output.exists():
        os.rename(replaced, output)
        sync(output.parent)


def _is_ours(path: Path) -> bool:
    """Whether a directory is a workspace, or empty."""
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else {"a file"}
    return not names or bool(names & {"lock", "journal.json"})


def _is_committed(path: Path, output: Path) -> bool:
    """Whether a run was killed between its commit and the removal of its workspace."""
    return (path / "journal.json").is_file() and not (path / "result").exists() and output.is_dir()


def _check_journal(path: Path, wanted: dict[str, Any]) -> None:
    """Compare the journal's fingerprint with this run's."""
    try:
        journal = json.loads((path / "journal.json").read_text(encoding="utf-8"))
        found = journal["fingerprint"]
    except FileNotFoundError as error:
        raise RequestError(
            f"nothing to resume: `{path}` holds no journal", "run without --resume"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"`{path / 'journal.json'}` is damaged", "start anew: run without --resume"
        ) from error
    differing = list(_differences(found, wanted))
    if differing:
        key, before, now = differing[0]
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise RequestError(
            f"can't resume: `{key}` was {before} in the interrupted run and is {now} now{more}",
            "repeat the interrupted run's options, or start anew without --resume",
        )


def _differences(before: object, now: object, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, value before, value now) for each leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}):
            inner = f"{key}.{name}" if key else name
            yield from _differences(before.get(name), now.get(name), inner)
    elif before != now:
        yield key or "fingerprint", json.dumps(before), json.dumps(now)


@contextlib.contextmanager
def _denied(path: Path) -> Iterator[None]:
    """Turn a place that can't be written into a RequestError."""
    try:
        yield
    except OSError as error:
        if error.errno in _DENIED | {errno.ENOTDIR}:
            raise RequestError(
                f"`{path}` can't be made: {error.strerror}", "choose another --output"
            ) from error
        raise


def _flush_tree(directory: Path, mode: int) -> None:
    """Give every file the usual mode and push files and directories to the disk, leaves first."""
    for entry in sorted(directory.iterdir()):
        if entry.is_symlink():
            raise RunError(
                f"`{entry}` is a symbolic link: a result must hold its files itself",
                "this is a fault of the program; please report it",
            )
        if entry.is_dir():
            _flush_tree(entry, mode)
        else:
            entry.chmod(mode)
            sync(entry)
    sync(directory)
