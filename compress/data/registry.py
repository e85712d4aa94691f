"""The corpus registry: names that a data spec may use, and the files that travel with the package.

`calib_data/registry.yaml` describes each corpus once: where it lies, which split serves which role,
its columns, its licence, and how a row becomes prompt, answer and rationale. A corpus has two
roles, calibration and evaluation, on different splits wherever it has more than one, so that naming
it in both `--calib` and `--ppl` shares no rows. A user's own file adds entries, or changes shipped
ones.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

import compress
from compress.data.fields import Field
from compress.errors import RequestError

ROLES = ("calibration", "evaluation")
SOURCES = ("hub", "local", "made", "sampled")


@dataclass(frozen=True)
class Sampling:
    """How text is sampled from a model (`compress.calibration.sampling`).

    Attributes:
        prefix: data spec of texts whose first tokens begin each sample; "" begins with the
            beginning-of-text token alone.
        prefix_tokens: how many tokens of a text are kept.
        first_temperature, ramp: the temperature falls in a line from the first to `temperature`
            over so many tokens; 0 leaves it constant.
        temperature: > 0.
        top_k, top_p: only the k likeliest tokens, and the likeliest with a total probability of p;
            0 and 1 are all.
        repetition_penalty: divides the odds of tokens that are there already; 1 is none.
        keep: share of the samples that is kept, those of lowest perplexity.
        distinct: least share of distinct runs of four tokens; a sample below it is a loop.
    """

    prefix: str = ""
    prefix_tokens: int = 2
    first_temperature: float = 2.0
    ramp: int = 8
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    keep: float = 0.8
    distinct: float = 0.5


@dataclass(frozen=True)
class Corpus:
    """One entry of the registry.

    Attributes:
        name: what a data spec calls it.
        column: the text column used when the spec names none.
        columns: every text column.
        licence: as the dataset's own card or paper states it.
        hub: dataset id on the Hub; empty for a corpus that lies elsewhere.
        config, revision: configuration and pinned revision on the Hub, or None.
        local: role -> file or directory; a relative one lies beside the registry.
        made: "dots" or "characters", text without sense that is made on the spot.
        sampled: how text is sampled from the model, or None.
        splits: role -> split name on the Hub.
        files: role -> the one data file of the repository to read, where a split is too large.
        rows: role -> how many leading rows are read; a role that is absent reads all.
        skip: role -> how many leading rows are passed over, where roles share one file.
        joined: role -> the string that joins all rows into one document, as published protocols do.
        fields: name -> Field, what templates may name beside columns.
        templates: of "raw", "prompt", "answer" and "rationale", which formats are made of.
        separator: what stands between demonstrations of one prompt.
        group: what it tests, such as arithmetic.
        tasks: lm-eval tasks that score on it.
        size: rows, in words.
        about: one line for people.
        place: directory that local files are relative to; None is that of the shipped registry.
    """

    name: str
    column: str
    columns: tuple[str, ...]
    licence: str
    hub: str = ""
    config: str | None = None
    revision: str | None = None
    local: Mapping[str, str] = field(default_factory=dict)
    made: str = ""
    sampled: Sampling | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    skip: Mapping[str, int] = field(default_factory=dict)
    joined: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Field] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    separator: str = "\n\n"
    group: str = ""
    tasks: tuple[str, ...] = ()
    size: str = ""
    about: str = ""
    place: Path | None = None

    def has_role(self, role: str) -> bool:
        """Whether the corpus has rows for this role, "calibration" or "evaluation"."""
        if self.made or self.sampled:
            return role == "calibration"
        return role in (self.splits if self.hub else self.local)

    def path(self, role: str) -> Path:
        """Return the local file or directory of a role.

        Raises:
            RequestError: it isn't there.
        """
        if self.place is None:
            return shipped(self.local[role])
        path = self.place / Path(self.local[role]).expanduser()
        if not path.exists():
            raise RequestError(
                f"corpus `{self.name}`: `{path}`: no such file or directory",
                "a path in a registry is relative to the registry",
            )
        return path


def shipped(relative: str) -> Path:
    """Return the path of a file or directory of `calib_data`, such as "demo/test.jsonl".

    It lies beside the package in a checkout and inside it in an installed wheel.

    Raises:
        RequestError: the installation lacks it.
    """
    package = Path(compress.__file__).resolve().parent
    for root in (package / "shipped" / "calib_data", package.parent / "calib_data"):
        if (root / relative).exists():
            return root / relative
    raise RequestError(
        f"the installed package lacks its own `calib_data/{relative}`",
        hint="reinstall it: pip install --force-reinstall compress",
    )


def corpora(registry: str | Path | None = None) -> Mapping[str, Corpus]:
    """Return the corpora that a data spec may name: those shipped, and a user's own.

    Args:
        registry: a user's registry file; its entries win over shipped ones of the same name.

    Raises:
        RequestError: as load_registry.
    """
    if registry is None:
        return load_registry()
    return {**load_registry(), **load_registry(Path(registry))}


def load_registry(path: Path | None = None) -> dict[str, Corpus]:
    """Read one registry file; by default the shipped one.

    Returns:
        name -> Corpus, in the order of the file.

    Raises:
        RequestError: the file can't be read or an entry breaks the schema; names file and line.
    """
    if path is None:
        return _read(shipped("registry.yaml"), False, 0)
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise RequestError(f"registry `{path}` can't be read: {error.strerror}") from error
    return _read(path, True, changed)


@functools.cache
def _read(path: Path, own: bool, changed: int) -> dict[str, Corpus]:
    """Read a registry file, anew where it has changed; a user's may build on the shipped one."""
    from compress.data.schema import read_entries

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"registry `{path}` can't be read: {reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or "not YAML"
        raise RequestError(f"{path}:{line}: {problem}") from error
    base = load_registry() if own else {}
    return read_entries(root, path, base, path.resolve().parent if own else None)
