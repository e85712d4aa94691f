"""The tables of changed examples: for each model and measure the first few, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from compress.evaluation.error_rates import WORDS
from compress.evaluation.shown import head, tail
from compress.reports.formats import screen_width, short_names, signed, table

_NUMBER = 12  # columns of an item's number or name
_ANSWER = 14  # columns of an answer
_GAPS = 3  # blanks between columns


def changed_blocks(result: Mapping[str, Any], names: Mapping[str, str], most: int) -> list[str]:
    """Render what `changed.changes` found, as it stands in each model's "comparison".

    Args:
        result: what `Evaluation.as_dict` gives.
        names: model -> what to call it.
        most: rows of a table.
    """
    against = result.get("against")
    compared = [model for model in result["models"] if "changed" in model.get("comparison", {})]
    blocks = []
    for model in compared:
        own, base = names[model["source"]], names[str(against)]
        comparison = model["comparison"]
        for kind, entries in comparison["changed"].items():
            short = short_names(entries)
            for key, entry in entries.items():
                p = comparison.get(kind, {}).get(key, {}).get("p")
                title = f"{short[key]}, {own} against {base}"
                heading = f"{title}: {_counts(kind, entry, p)}"
                rows = entry.get("windows", entry.get("items", []))[:most]
                body = _table(kind, entry, rows, base, own)
                blocks.append(f"{heading}\n{body}" if body else heading)
    return blocks


def _counts(kind: str, entry: Mapping[str, Any], p: float | None) -> str:
    """Return "3 right → wrong, 1 wrong → right of 50 (p 0.62)", or what rose and fell."""
    sure = "" if p is None else f" (p {p:.2g})"
    if "lost" in entry:
        said = f"{entry['lost']} right → wrong, {entry['gained']} wrong → right"
        return f"{said} of {entry['n']}{sure}"
    what = {"perplexity": "loss", WORDS: "errors"}.get(kind, "value")
    unit = "windows" if "windows" in entry else "items"
    return f"{what} rose in {entry['rose']}, fell in {entry['fell']} of {entry['n']} {unit}{sure}"


def _table(
    kind: str, entry: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], base: str, own: str
) -> str:
    if not rows:
        return ""
    base, own = tail(base, _ANSWER), tail(own, _ANSWER)  # versions differ at the end
    if "lost" in entry:
        return _answers(kind, rows, base, own)
    decimals = 0 if kind == WORDS else 3
    cells = [
        [
            _number(kind, row.get("window", row.get("item", ""))),
            f"{row['before']:.{decimals}f}",
            f"{row['after']:.{decimals}f}",
            signed(row["after"] - row["before"], decimals),
            row.get("text", row.get("question", row.get("answer_after", ""))),
        ]
        for row in rows
    ]
    title = {"perplexity": "begins", WORDS: f"heard by {own}"}.get(kind, "question")
    unit = "window" if "window" in rows[0] else "item"
    return _fitted(
        [unit, base, own, "change", title], cells, "rrrrl" if unit == "window" else "lrrrl"
    )


def _answers(kind: str, rows: Sequence[Mapping[str, Any]], base: str, own: str) -> str:
    """Return a table of right-or-wrong items: question, target and both answers."""
    cells = []
    for row in rows:
        way = "lost" if row["before"] > row["after"] else "gained"
        answers = [row.get(name, "") for name in ("target", "answer_before", "answer_after")]
        if kind == "accuracy":
            question: list[str] = []
        else:
            question = [row.get("question", "")]
        cells.append(
            [_number(kind, row["item"]), way, *(head(text, _ANSWER) for text in answers), *question]
        )
    heads = ["item", "", "target", base, own, *(["question"] if kind != "accuracy" else [])]
    filled = [i for i in range(len(heads)) if i < 2 or any(row[i] for row in cells)]
    return _fitted(
        [heads[i] for i in filled], [[row[i] for i in filled] for row in cells], "l" * len(filled)
    )


def _number(kind: str, item: object) -> str:
    """Return what to call an item: its number in a task, a file by its name."""
    if kind == "tasks":
        return tail(str(item).rpartition(":")[0] or str(item), _NUMBER)
    return tail(PurePath(str(item)).name, 2 * _NUMBER) if isinstance(item, str) else str(item)


def _fitted(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Lay out a table whose last column is cut to the room that the others leave."""
    lines = [list(header), *map(list, rows)]
    taken = sum(max(len(row[i]) for row in lines) + _GAPS for i in range(len(header) - 1))
    room = max(screen_width() - taken, 10)
    cut = tail if header[-1] == "question" else head
    return table(header, [[*row[:-1], cut(row[-1], room)] for row in rows], align)
