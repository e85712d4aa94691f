"""The table of `compress eval`: a row per model, a block per measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compress.evaluation.changed import DEFAULT
from compress.evaluation.changed_page import changed_blocks
from compress.evaluation.distances_page import distances_block
from compress.evaluation.long_context.page import long_block
from compress.reports.formats import MINUS, bytes_text, quality, short_names, signed, table


def evaluation_table(result: Mapping[str, Any], changed: int = DEFAULT) -> str:
    """Render what `Evaluation.as_dict` gives.

    Args:
        result: {"models": […], "against": …, "notes": […]}.
        changed: rows of each table of changed examples.

    Returns:
        Lines of text: per text and task the models with value, standard error and, where they were
        compared, the difference with its 95 % interval or "not distinguishable".
    """
    against = result.get("against")
    models = sorted(result["models"], key=lambda model: model["source"] != against)
    names = short_names([model["source"] for model in models])
    blocks = []
    for kind, shown in (
        ("perplexity", _perplexity),
        ("tasks", _task),
        ("accuracy", _accuracy),
        ("wer", _words),
        ("cer", _characters),
    ):
        keys = dict.fromkeys(
            key
            for model in models
            for key, entry in model.get(kind, {}).items()
            if "cells" not in entry
        )
        blocks += [_block(models, names, kind, key, shown, against) for key in keys]
    long = dict.fromkeys(
        key for model in models for key, entry in model.get("tasks", {}).items() if "cells" in entry
    )
    for key in long:
        having = [model for model in models if key in model.get("tasks", {})]
        blocks.append(long_block(key, having, names, against))
    if any("speed" in model for model in models):
        blocks.append(_speed(models, names))
    blocks += changed_blocks(result, names, changed)
    blocks += [
        distances_block(model["comparison"]["distances"], names[model["source"]], names[against])
        for model in models
        if against is not None and "distances" in model.get("comparison", {})
    ]
    notes = "\n".join(result.get("notes", ()))
    return "\n\n".join([*blocks, *([notes] if notes else [])])


def _block(
    models: list[Mapping[str, Any]],
    names: Mapping[str, str],
    kind: str,
    key: str,
    shown: Callable[[Mapping[str, Any]], tuple[str, str]],
    against: str | None,
) -> str:
    rows = []
    heading = key
    for model in models:
        entry = model.get(kind, {}).get(key)
        if entry is None:
            continue
        heading, value = shown(entry)
        compared = model.get("comparison", {}).get(kind, {}).get(key)
        change = "" if compared is None else _change(compared, kind)
        rows.append([names[model["source"]], value, change])
    title = "change" if against is None else f"against {names[against]}"
    columns = 3 if any(row[2] for row in rows) else 2
    cells = [row[:columns] for row in rows]
    body = table(["model", "value", title][:columns], cells, "lll"[:columns])
    return f"{short_names([key])[key]}: {heading}\n{body}"


def _perplexity(entry: Mapping[str, Any]) -> tuple[str, str]:
    error = f" ± {quality(entry['stderr'])}" if "stderr" in entry else ""
    heading = f"perplexity, {entry['windows']} × {entry['seqlen']} tokens"
    return heading, quality(entry["value"]) + error


def _task(entry: Mapping[str, Any]) -> tuple[str, str]:
    metric = entry.get("metric", "acc")
    value = entry.get("acc", entry.get(metric, 0.0))
    error = f" ± {entry['stderr']:.3f}" if "stderr" in entry else ""
    return f"{metric}, {entry['n']} items", f"{value:.3f}{error}"


def _accuracy(entry: Mapping[str, Any]) -> tuple[str, str]:
    error = f" ± {entry['stderr']:.3f}" if "stderr" in entry else ""
    return f"accuracy, {entry['n']} images", f"{entry['top1']:.3f}{error}  top5 {entry['top5']:.3f}"


def _words(entry: Mapping[str, Any]) -> tuple[str, str]:
    return _rate(entry, "word error rate")


def _characters(entry: Mapping[str, Any]) -> tuple[str, str]:
    return _rate(entry, "character error rate")


def _rate(entry: Mapping[str, Any], name: str) -> tuple[str, str]:
    error = f" ± {entry['stderr']:.3f}" if "stderr" in entry else ""
    heading = f"{name}, {entry['utterances']:,} utterances, {entry['words']:,} words"
    return heading, f"{entry['value']:.3f}{error}"


def _change(compared: Mapping[str, Any], kind: str) -> str:
    """Return "+3.26 (95 %: +3.1 … +3.4)", or say that it is within its noise."""
    if not compared.get("distinguishable", True):
        return f"not distinguishable (p {compared['p']:.2f})" if "p" in compared else ""
    digits = 2 if kind == "perplexity" else 3
    text = signed(compared["difference"], digits)
    if "ci95" not in compared:
        return text
    low, high = (signed(end, digits) for end in compared["ci95"])
    return f"{text} (95 %: {low} … {high})"


def _speed(models: list[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    rows = []
    for model in models:
        speed = model.get("speed", {})
        decode = speed.get("decode_tokens_per_s")
        rows.append(
            [
                names[model["source"]],
                f"{speed['prefill_tokens_per_s']:,.1f}",
                MINUS if decode is None else f"{decode:,.1f}",
                bytes_text(speed["peak_bytes"]),
            ]
        )
    heads = ["model", "prefill tokens/s", "decode tokens/s", "peak memory"]
    return f"speed\n{table(heads, rows, 'lrrr')}"
