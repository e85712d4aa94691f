"""The parts of a receipt as typed records, and their way to JSON and back.

A field that is None or empty was not measured and is absent from the JSON. Keys that a record
doesn't know (of a newer command, or "accuracy", "wer", "macs" of other models) are kept in `extra`.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import PurePath
from typing import Any, TypeVar

from compress.errors import RunError

T = TypeVar("T")


@dataclass(frozen=True)
class Perplexity:
    """exp(mean loss in nats) over `tokens` predicted tokens; `stderr` in the same unit."""

    value: float
    stderr: float | None = None
    tokens: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskScore:
    """Fraction of `n` items answered rightly, and its standard error."""

    acc: float
    stderr: float | None = None
    n: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Speed:
    """Tokens per second while reading the prompt and while writing; peak memory in bytes."""

    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    peak_bytes: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measures:
    """What was measured of one model.

    Attributes:
        parameters, nonzero: counts of weights, all and those that aren't zero.
        bytes: size of the weight files.
        perplexity: by data spec.
        tasks: by lm-eval task name.
        speed: of the model in memory on the receipt's device.
        extra: other measures in CONTRACT's form, such as "accuracy", "wer", "macs", "latency".
    """

    parameters: int | None = None
    nonzero: int | None = None
    bytes: int | None = None
    perplexity: Mapping[str, Perplexity] = field(default_factory=dict)
    tasks: Mapping[str, TaskScore] = field(default_factory=dict)
    speed: Speed | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """After minus before, its 95 % interval and two-sided p, paired on the same examples."""

    difference: float
    ci95: tuple[float, float] | None = None
    p: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Differences by data spec and by task; other measures in `extra`."""

    perplexity: Mapping[str, Difference] = field(default_factory=dict)
    tasks: Mapping[str, Difference] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelInfo:
    """The model that a command read."""

    source: str
    architecture: str | None = None
    digest: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanInfo:
    """The plan file beside the receipt."""

    file: str
    digest: str
    rows: int
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceInfo:
    """Where the command computed: the device's name, and how many of them."""

    name: str
    count: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """Seconds of each phase, peak memory in bytes, and passes over the calibration set.

    `passes` is the number of block forward passes over the set divided by the number of blocks.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None
    passes: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def encode(value: object, where: str = "receipt") -> Any:
    """Turn records, numpy and torch numbers, paths and containers into JSON types.

    None and empty parts of records and dicts are left out.

    Args:
        value: anything a receipt holds.
        where: dotted name of the value, for errors.

    Raises:
        RunError: a number is NaN or infinite.
        TypeError: a value that has no JSON form (a bug of the caller).
    """
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: getattr(value, f.name) for f in fields(value) if f.name != "extra"}
        known = {key: part for key, part in own.items() if not _is_empty(part)}
        return encode({**getattr(value, "extra", {}), **known}, where)
    if isinstance(value, Mapping):
        return {
            str(key): encode(part, f"{where}.{key}")
            for key, part in value.items()
            if part is not None
        }
    if isinstance(value, (str, bool)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RunError(f"`{where}` is {value}; a receipt holds finite numbers only")
        return float(value)
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch numbers and arrays, without importing either
        return encode(value.tolist(), where)
    if isinstance(value, (Sequence, set, frozenset)):
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [encode(part, f"{where}[{i}]") for i, part in enumerate(items)]
    raise TypeError(f"`{where}` is a {type(value).__name__}, which has no JSON form")


def _is_empty(part: object) -> bool:
    return part is None or (isinstance(part, (Mapping, tuple, list)) and not part)


def decode(kind: type[T], data: object, where: str) -> T:
    """Build a record from JSON types; keys that it doesn't know go to `extra`.

    Args:
        kind: the record's class.
        data: what json.loads gave.
        where: dotted name of the value, for errors.

    Raises:
        ValueError: a needed key is missing or a value has another type; names it.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"`{where}` is {_shown(data)}, not an object")
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if f.name != "extra"}  # type: ignore[arg-type]
    values: dict[str, Any] = {
        key: _decode_value(hints[key], data[key], f"{where}.{key}") for key in known if key in data
    }
    if "extra" in hints:
        values["extra"] = {key: part for key, part in data.items() if key not in known}
    try:
        return kind(**values)
    except TypeError as error:
        names = str(error).rpartition("argument")[2].lstrip("s: ")
        raise ValueError(f"`{where}` lacks {names}") from error


def _decode_value(hint: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = (a for a in args if a is not type(None))
        return None if data is None else _decode_value(hint, data, where)
    if hint is Any:
        return data
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise ValueError(f"`{where}` is {_shown(data)}, not an object")
        return {k: _decode_value(args[1], v, f"{where}.{k}") for k, v in data.items()}
    if origin is tuple:
        many = len(args) == 2 and args[1] is Ellipsis
        if not isinstance(data, list) or not (many or len(data) == len(args)):
            raise ValueError(f"`{where}` is {_shown(data)}, not a list of {len(args)}")
        kinds = [args[0]] * len(data) if many else args
        return tuple(
            _decode_value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, data))
        )
    if is_dataclass(hint):
        return decode(typing.cast(type, hint), data, where)
    right = isinstance(data, (int, float) if hint is float else hint)
    if not right or (isinstance(data, bool) and hint is not bool):
        raise ValueError(f"`{where}` is {_shown(data)}, not {_NAMES.get(hint, hint.__name__)}")
    return data


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _shown(data: object) -> str:
    text = repr(data)
    return text if len(text) <= 40 else text[:37] + "…"
