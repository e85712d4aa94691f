"""Tables and heat maps of long-context tasks, for the terminal and as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.evaluation.long_context.attention import PARTS
from compress.evaluation.long_context.results import ON_ANSWER
from compress.reports import formats as fmt
from compress.reports.heatmap import draw_heatmap, heatmap

_AXES = {  # task -> what goes down, what goes across
    "needle": ("depth", "length"),
    "multidoc": ("position", "documents"),
    "longreason": ("hops", "length"),
}
_WIDTH = 80


def long_block(
    task: str, models: Sequence[Mapping[str, Any]], names: Mapping[str, str], against: str | None
) -> str:
    """Render one task of several models.

    Args:
        task: of NAMES.
        models: entries of `eval --json`, those without the task left out.
        names: source -> how it is called.
        against: the source that others are compared with, or None.

    Returns:
        A table of scores, a heat map for each model, and a table of attention where it was watched.
    """
    entries = [(model, model["tasks"][task]) for model in models]
    first = entries[0][1]
    head = f"{task}: {first['n']} items, chance {first['chance']:.2f}"
    parts = [f"{head}\n{_scores(task, entries, names, against)}"]
    down, across = _AXES[task]
    for model, entry in entries:
        rows, columns, cells = _grid(task, entry)
        drawn = heatmap(cells, rows, columns, width=_WIDTH)
        title = f"{names[model['source']]}: accuracy by {down} (down) and {across} (across)"
        parts.append(f"{title}\n{drawn}")
    if any("attention" in entry for _, entry in entries):
        parts.append(_attention(task, entries, names, against))
    return "\n\n".join(parts)


def _scores(
    task: str,
    entries: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    names: Mapping[str, str],
    against: str | None,
) -> str:
    rows = []
    for model, entry in entries:
        compared = model.get("comparison", {}).get("tasks", {}).get(task)
        shown = (("acc", "stderr"), ("exact_match", None), ("answer_loss", None))
        values = []
        for name, error in shown:
            spread = entry.get(error or f"{name}_stderr")
            values.append(f"{entry[name]:.3f}" + ("" if spread is None else f" ± {spread:.3f}"))
        rows.append([names[model["source"]], *values])
        if compared is not None:
            parts = [compared, *(compared.get(name, {}) for name in ("exact_match", "answer_loss"))]
            rows.append(["  against " + names[str(against)], *map(_change, parts)])
    heads = ["model", "likeliest right", "greedy right", "loss, nats/token"]
    return fmt.table(heads, rows, "llll", width=_WIDTH)


def _change(compared: Mapping[str, Any]) -> str:
    """Return a difference with its p, as "+0.120 (p 0.01)"."""
    if "difference" not in compared:
        return ""
    p = f" (p {compared['p']:.2g})" if "p" in compared else ""
    return fmt.signed(compared["difference"], 3) + p


def _grid(
    task: str, entry: Mapping[str, Any]
) -> tuple[list[str], list[str], list[list[float | None]]]:
    """Return names of rows and columns, and the accuracies between them."""
    down, across = _AXES[task]
    found = {(cell[down], cell[across]): cell["acc"] for cell in entry["cells"]}
    rows = sorted({row for row, _ in found})
    columns = sorted({column for _, column in found})
    cells = [[found.get((row, column)) for column in columns] for row in rows]
    return [f"{row:g}" for row in rows], [f"{column:g}" for column in columns], cells


def _attention(
    task: str,
    entries: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    names: Mapping[str, str],
    against: str | None,
) -> str:
    rows = []
    for model, entry in entries:
        seen = entry.get("attention")
        if seen is not None:
            shares = [f"{seen['share'][part]:.3f}" for part in PARTS]
            rows.append([names[model["source"]], *shares, f"{seen['entropy']:.2f}"])
    lines = ["share of attention while answering: mean over layers, heads and items"]
    lines.append(fmt.table(["model", *PARTS, "entropy"], rows, "lrrrrrr", width=_WIDTH))
    for model, _ in entries:
        compared = model.get("comparison", {}).get("tasks", {}).get(task, {}).get(ON_ANSWER)
        if compared is not None:
            name, other = names[model["source"]], names[str(against)]
            lines.append(f"on the answer, {name} against {other}: {_change(compared)}")
    return "\n".join(lines)


def draw_tasks(models: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write the heat maps of all models and long-context tasks as one PNG.

    Args:
        models: entries of `eval --json`.
        path: the file.

    Raises:
        RunError: the file can't be written.
    """
    from compress.reports.pictures import new_figure, save_figure

    tasks = [task for task in _AXES if any(task in model.get("tasks", {}) for model in models)]
    names = fmt.short_names([model["source"] for model in models])
    size = (1.5 + 3.5 * len(tasks), 1 + 2.6 * len(models))
    figure, axes = new_figure(len(models), len(tasks), size)
    for row, model in enumerate(models):
        for column, task in enumerate(tasks):
            ax = axes[row, column]
            entry = model["tasks"].get(task)
            if entry is None:
                ax.set_axis_off()
                continue
            down, across = _AXES[task]
            rows, columns, cells = _grid(task, entry)
            draw_heatmap(ax, figure, cells)
            ax.set(
                title=f"{task}, {names[model['source']]}", xlabel=across, ylabel=down,
                xticks=range(len(columns)), xticklabels=columns,
                yticks=range(len(rows)), yticklabels=rows,
            )  # fmt: skip
    save_figure(figure, path)
