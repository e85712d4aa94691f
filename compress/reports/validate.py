"""Whether a receipt keeps CONTRACT's promises; used by the tests of every command."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from compress.reports.receipt import SCHEMA, Receipt

_NEEDED = ("schema", "command", "argv", "status", "seed", "versions", "device")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_POSITIVE = {
    "parameters", "bytes", "tokens", "n", "peak_bytes", "prefill_tokens_per_s",
    "decode_tokens_per_s", "words", "macs", "batch_1_s", "batch_64_s", "passes",
}  # fmt: skip
_FRACTION = {"acc", "p", "p_holm", "top1", "top5"}


def check(receipt: Mapping[str, Any]) -> list[str]:
    """List what is wrong with a receipt's JSON form; empty means that it keeps to CONTRACT.

    Args:
        receipt: what json.loads gave of a receipt.json.
    """
    faults = [f"`{key}` is missing" for key in _NEEDED if key not in receipt]
    if receipt.get("schema") != SCHEMA:
        faults.append(f"`schema` is {receipt.get('schema')!r}, not {SCHEMA}")
    for name in ("compress", "torch", "transformers"):
        if name not in (receipt.get("versions") or {}):
            faults.append(f"`versions.{name}` is missing")
    faults += _walk(receipt, "")
    try:
        Receipt.from_dict(receipt)
    except ValueError as error:
        faults.append(str(error))
    return faults + _ordered(receipt)


def _walk(value: object, where: str) -> Iterator[str]:
    key = where.rpartition(".")[2]
    if value is None:
        yield f"`{where}` is null; what was not measured is absent"
    elif isinstance(value, Mapping):
        if not value and where not in ("settings",):
            yield f"`{where}` is empty; what was not measured is absent"
        for name, part in value.items():
            yield from _walk(part, f"{where}.{name}" if where else str(name))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _walk(part, f"{where}[{index}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            yield f"`{where}` is {value}"
        elif not where.startswith("settings."):
            yield from _number(key, value, where)
    elif isinstance(value, str) and key == "digest" and not _DIGEST.fullmatch(value):
        yield f"`{where}` is {value!r}, not sha256: and 64 hex digits"


def _number(key: str, value: float, where: str) -> Iterator[str]:
    rules: tuple[tuple[bool, Callable[[float], bool], str], ...] = (
        (key in _POSITIVE, lambda v: v > 0, "not positive: unmeasured is absent, not zero"),
        (key in _FRACTION, lambda v: 0 <= v <= 1, "outside [0, 1]"),
        (key == "stderr", lambda v: v >= 0, "negative"),
        (".perplexity." in where and key == "value", lambda v: v >= 1, "below 1"),
        (where.startswith("cost.seconds."), lambda v: v >= 0, "negative"),
    )
    yield from (f"`{where}` is {value}, {why}" for on, good, why in rules if on and not good(value))


def _ordered(receipt: Mapping[str, Any]) -> list[str]:
    """Relations between numbers that one number can't break alone."""
    faults = []
    for side in ("before", "after"):
        measures = receipt.get(side) or {}
        total, nonzero = measures.get("parameters"), measures.get("nonzero")
        if total is not None and nonzero is not None and not 0 <= nonzero <= total:
            faults.append(f"`{side}.nonzero` is {nonzero} of {total} parameters")
    compared = receipt.get("comparison")
    if not isinstance(compared, Mapping):
        return faults
    for kind, parts in compared.items():
        for name, part in parts.items() if isinstance(parts, Mapping) else ():
            where = f"comparison.{kind}.{name}"
            faults += _interval(part, where)
            for side in ("before", "after"):
                if name not in ((receipt.get(side) or {}).get(kind) or {}):
                    faults.append(f"`{where}` compares what `{side}` doesn't hold")
    return faults


def _interval(part: object, where: str) -> list[str]:
    if not isinstance(part, Mapping) or "ci95" not in part or "difference" not in part:
        return []
    low, high = part["ci95"]
    if low <= part["difference"] <= high:
        return []
    return [f"`{where}`: {part['difference']} is outside its interval {low} … {high}"]
