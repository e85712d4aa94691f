"""Recordings with transcripts: a folder with a manifest, the manifest itself, or saved `datasets`.

A manifest is a .csv, .jsonl, .json or .parquet table with a column of audio (`audio`, `file_name`,
`audio_filepath`, `path`, `file`) and one of text (`text`, `transcript`, `transcription`,
`sentence`, or the one named as `PATH:COLUMN`). Paths are relative to the manifest. In a folder it
is called `manifest` or `metadata`, else `train` and `test` as the role asks. An audio cell may also
hold the file itself, as the audio columns of `datasets` do: {"bytes": …, "path": …}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.data import files
from compress.data.specs import DataSpec, parse_spec
from compress.errors import RequestError

AUDIO_COLUMNS = ("audio", "file_name", "audio_filepath", "path", "file")
TEXT_COLUMNS = ("text", "transcript", "transcription", "sentence")
VISUAL_COLUMNS = ("visual", "visual_features")
_MANIFESTS = ("manifest", "metadata")
_HINT = (
    "name a folder with manifest.csv or manifest.jsonl (columns `audio` and `text`), that file, or "
    "a directory saved by `datasets` with an audio column"
)


@dataclass(frozen=True)
class Recording:
    """One recording and what is said in it.

    Attributes:
        name: what messages call it: its file, or its row.
        text: the transcript, white space at its ends removed.
        path: its file, or None where `content` is it.
        content: the file's bytes.
        visual: a .npy of feature vectors by video frame, [frames, features]; None where the
            manifest names none.
    """

    name: str
    text: str
    path: Path | None = None
    content: bytes | None = None
    visual: Path | None = None

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            RequestError: it can't be read.
        """
        if self.path is None:
            return self.content or b""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise RequestError(f"`{self.name}` can't be read: {error.strerror or error}") from error

    def visual_file(self) -> Path:
        """Return the .npy that goes with it: the one named, else the one beside the recording.

        Raises:
            RequestError: there is none.
        """
        if self.visual is None and self.path is None:
            raise RequestError(
                f"`{self.name}` has no file beside which visual features could lie",
                f"name them in a column `{VISUAL_COLUMNS[0]}`",
            )
        place = self.visual or Path(str(self.path)).with_suffix(".npy")
        if not place.is_file():
            raise RequestError(
                f"`{self.name}` has no visual features: there is no `{place}`",
                "one .npy [video frames, features] beside each recording",
            )
        return place


def read_recordings(
    spec: str | Sequence[str] | DataSpec, role: str = "calibration", limit: int | None = None
) -> list[Recording]:
    """List the recordings of data specs; audio itself isn't read.

    Args:
        spec: `PATH[:TEXT_COLUMN]`, several with commas.
        role: "calibration" or "evaluation": which split is read where there are several.
        limit: at most so many leading recordings of each spec.

    Raises:
        RequestError: no such path, no manifest, no column of audio or text, a file that isn't
            there, an empty transcript.
    """
    specs = [spec] if isinstance(spec, DataSpec) else parse_spec(spec)
    return [recording for one in specs for recording in _read_one(one, role, limit)]


def _read_one(spec: DataSpec, role: str, limit: int | None) -> list[Recording]:
    if not spec.is_path:
        raise RequestError(f"`{spec.text}` is no path, and speech is read from files", _HINT)
    if spec.format != "raw":
        raise RequestError(f"`{spec.text}`: `@{spec.format}` is a format of text, not of speech")
    path = Path(spec.name)
    found: list[Recording] = []
    if path.is_dir() and files.is_saved(path):
        found += _recordings(_saved_rows(path, role, limit), path, spec.column, path)
    else:
        for file in _manifests(path, role):
            rows = files.read_rows(file, role, limit)
            where = [(f"{file}, row {number}", row) for number, row in enumerate(rows, 1)]
            found += _recordings(where, file, spec.column, file.parent)
    if not found:
        raise RequestError(f"`{path}` lists no recordings", _HINT)
    return found


def _manifests(path: Path, role: str) -> list[Path]:
    if path.is_file():
        if files.kind_of(path) not in files.TABLES:
            raise RequestError(f"`{path}` is no manifest of recordings", _HINT)
        return [path]
    for stem in _MANIFESTS:
        for kind in files.TABLES:
            if (path / f"{stem}{kind}").is_file():
                return [path / f"{stem}{kind}"]
    try:
        found = files.files_of(path, role)
    except RequestError:
        found = []
    tables = [file for file in found if files.kind_of(file) in files.TABLES]
    if not tables:
        raise RequestError(f"`{path}` has no manifest of recordings", _HINT)
    return tables


def _saved_rows(path: Path, role: str, limit: int | None) -> Iterator[tuple[str, Any]]:
    """Yield rows of a saved dataset with audio left as the bytes of its files."""
    import datasets

    saved = files.open_split(path, role)
    for name, feature in saved.features.items():
        if isinstance(feature, datasets.Audio):
            saved = saved.cast_column(name, datasets.Audio(decode=False))
    total = len(saved) if limit is None else min(limit, len(saved))
    for number in range(total):
        yield f"{path}, row {number + 1}", saved[number]


def _recordings(
    rows: Iterator[tuple[str, Any]] | list[tuple[str, Any]],
    source: Path,
    column: str | None,
    base: Path,
) -> list[Recording]:
    found = []
    audio = text = visual = None
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise RequestError(f"{where}: an object is needed, is {type(row).__name__}")
        if audio is None:
            audio = _column(row, AUDIO_COLUMNS, "audio", source)
            text = column or _column(row, TEXT_COLUMNS, "text", source)
            visual = next((name for name in VISUAL_COLUMNS if name in row), None)
            if text not in row:
                raise RequestError(
                    f"`{source}` has no column `{text}`", f"its columns: {', '.join(row)}"
                )
        assert text is not None
        found.append(_recording(row, where, base, audio, text, visual))
    return found


def _column(row: Mapping[str, Any], names: Sequence[str], what: str, source: Path) -> str:
    for name in names:
        if name in row:
            return name
    hint = f"its columns: {', '.join(row)}; needed: one of {', '.join(names)}"
    if what == "text":
        hint += f", or write `{source}:COLUMN`"
    raise RequestError(f"`{source}` has no column of {what}", hint)


def _recording(
    row: Mapping[str, Any], where: str, base: Path, audio: str, text: str, visual: str | None
) -> Recording:
    said = row.get(text)
    words = "" if said is None else " ".join(str(said).split())
    if not words:
        raise RequestError(f"{where}: the transcript is empty", "leave that recording out")
    seen = row.get(visual) if visual is not None else None
    beside = base / str(seen) if seen else None
    cell = row.get(audio)
    if isinstance(cell, Mapping):
        inside, path = cell.get("bytes"), cell.get("path")
        if inside:
            return Recording(f"{where} ({path})" if path else where, words, None, inside, beside)
        cell = path
    if not isinstance(cell, str) or not cell:
        raise RequestError(f"{where}: column `{audio}` names no file")
    path = base / cell
    if not path.is_file():
        raise RequestError(f"{where}: there is no file `{path}`")
    return Recording(str(path), words, path, None, beside)
