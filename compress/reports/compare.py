"""`compress report`: one receipt as its table, several as one table against the first row."""

from __future__ import annotations

import csv as csv_format
import fnmatch
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.errors import RequestError, near_names
from compress.reports import formats as fmt
from compress.reports.allocation import allocation_text
from compress.reports.columns import Column, Verdict, columns, verdicts
from compress.reports.notebook import Displayable
from compress.reports.receipt import SCHEMA, read_json, write_atomic
from compress.reports.records import encode
from compress.reports.runs import Run, listed_rows, read_runs
from compress.reports.tables import receipt_rows, receipt_table

_FIRST_SETTINGS = ("sparsity", "pattern", "method", "allocation", "metric", "calib", "seed")
_NOT_SETTINGS = ("ppl", "tasks", "task_dirs", "device", "batch_size", "output", "speed")


@dataclass(frozen=True)
class Report(Displayable):
    """Runs side by side. The first row is the reference."""

    runs: tuple[Run, ...]
    shown: tuple[str, ...] = field(default=(), kw_only=True)
    """Titles of the table's columns in their order; empty shows all."""
    against: str = field(default="", kw_only=True)
    """A cost that quality is drawn against, below the table."""

    def as_dict(self) -> dict[str, Any]:
        """All rows and their tests against the first, as JSON types."""
        data: dict[str, Any] = {"schema": SCHEMA, "runs": [run.as_dict() for run in self.runs]}
        found = [
            {
                "run": v.run,
                "reference": self.runs[0].name,
                "measure": v.measure,
                "difference": v.test.difference,
                "p": v.test.p,
                "p_holm": v.p_holm,
                "better": v.better,
                "paired": v.test.paired,
            }
            for v in verdicts(self.runs, columns(self.runs))
        ]
        return encode({**data, "comparison": found or None})

    def render(self, *, width: int | None = None, terminal: bool | None = None) -> str:
        """The table for people, at most 80 columns wide unless told."""
        only = self.runs[0]
        if len(self.runs) == 1 and only.receipt is not None:
            place = only.path if only.path.is_dir() else None
            shown = [
                receipt_table(only.receipt, place, width=width, terminal=terminal),
                allocation_text(only.allocation, width=width, terminal=terminal),
            ]
            return "\n\n".join(part for part in shown if part)
        screen = fmt.screen_width() if width is None else width
        header, rows, align = self.cells()
        parts = [
            fmt.table(
                [header[i] for i in part], [[row[i] for i in part] for row in rows],
                "".join(align[i] for i in part), width=screen, terminal=terminal,
            )
            for part in _pages([header, *rows], screen)
        ]  # fmt: skip
        remarks = [fmt.wrap(line, screen) for line in self.remarks()]
        table = "\n\n".join(parts) + "".join(f"\n{line}" for line in remarks)
        return fmt.fit_encoding(f"{table}\n\n{self._front(screen)}" if self.against else table)

    def _front(self, width: int) -> str:
        from compress.reports.pareto import pareto_text, plane_of

        return pareto_text(plane_of(self.runs, self.against), width=width - 4)

    def to_markdown(self) -> str:
        """The table as GitHub Markdown; one receipt's before and after likewise."""
        only = self.runs[0]
        if len(self.runs) == 1 and only.receipt is not None:
            rows = [list(row) for row in receipt_rows(only.receipt)]
            return fmt.markdown(["", "before", "after", "change", ""], rows, "lrrll")
        header, rows, align = self.cells()
        remarks = "".join(f"\n{line}\n" for line in self.remarks())
        return fmt.markdown(header, rows, align) + remarks.replace("* better", "\\* better")

    def to_latex(self) -> str:
        """The table for a paper: a tabular of the package booktabs; remarks as comments."""
        only = self.runs[0] if self.runs else None
        if len(self.runs) == 1 and only is not None and only.receipt is not None:
            rows = [list(row) for row in receipt_rows(only.receipt)]
            return fmt.latex(["", "before", "after", "change", ""], rows, "lrrll")
        header, rows, align = self.cells()
        return fmt.latex(header, rows, align) + "".join(f"% {r}\n" for r in self.remarks())

    def to_csv(self) -> str:
        """A line per run: every setting and measure under its dotted name, at full precision."""
        lines: list[dict[str, Any]] = []
        for run in self.runs:
            flat = dict(_flat({k: v for k, v in run.as_dict().items() if k != "name"}))
            lines.append({"run": run.name, **flat})
        for verdict in verdicts(self.runs, columns(self.runs)):
            row = next(line for line in lines if line["run"] == verdict.run)
            row[f"p_holm.{verdict.measure}"] = verdict.p_holm
        names = list(dict.fromkeys(key for line in lines for key in line))
        stream = io.StringIO()
        writer = csv_format.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return stream.getvalue()

    def draw(self, path: str | Path) -> None:
        """Draw the sparsity of every block as a PNG; quality against a cost, where one is named."""
        if self.against:
            from compress.reports.pareto import draw_pareto, plane_of

            draw_pareto(plane_of(self.runs, self.against), path)
            return
        from compress.reports.html import draw_shares

        draw_shares(self.runs, path)

    def to_html(self) -> str:
        """The report as one HTML file that needs no other; shares by block are drawn."""
        from compress.reports.html import report_page

        return report_page(self)

    def cells(self) -> tuple[list[str], list[list[str]], str]:
        """Head, rows and alignment of the table of runs."""
        measures = columns(self.runs)
        marks = {(v.run, v.measure): v.mark for v in verdicts(self.runs, measures)}
        marked = {title for (_, title), mark in marks.items() if mark}
        settings = _settings(self.runs)
        status = any(run.status != "ok" for run in self.runs)
        rows = []
        for run in self.runs:
            row = [run.name, *(_setting(run.settings.get(key)) for key in settings)]
            row += [run.status] if status else []
            for column in measures:
                room = f" {marks.get((run.name, column.title), '') or ' '}"
                row.append(column.show(run) + (room if column.title in marked else ""))
            rows.append(row)
        header = ["run", *(key.replace("_", " ") for key in settings)]
        header += ["status"] if status else []
        align = "l" + "".join(_side(self.runs, key) for key in settings) + "l" * status
        header += [c.title + "  " * (c.title in marked) for c in measures]
        return _chosen(header, rows, align + "r" * len(measures), self.shown)

    def remarks(self) -> list[str]:
        """What holds for all rows, and what the marks rest on."""
        lines = []
        measures = columns(self.runs)
        found = verdicts(self.runs, measures)
        marks = {v.mark for v in found} - {""}
        if found:
            lines.append(_basis(found, marks, len(self.runs) - 1))
        if any("loss" in column.title for column in measures):
            lines.append("losses of one training run each: another seed's noise isn't included")
        before = _before(self.runs, measures)
        if before:
            lines.append(f"before, for all: {before}")
        for run in self.runs:
            warned = (run.receipt.extra.get("warnings") if run.receipt else None) or []
            lines += [f"{run.name}: {line}" for line in warned]
        constant = _constants(self.runs)
        if constant:
            lines.append(f"the same in all: {constant}")
        return lines


def report(
    paths: Sequence[str | Path] | str | Path,
    *,
    csv: str | Path | None = None,
    markdown: str | Path | None = None,
    html: str | Path | None = None,
    png: str | Path | None = None,
    latex: str | Path | None = None,
    sort: str | None = None,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    pareto: str | None = None,
) -> Report:
    """Read receipts and lay them side by side; = `compress report`. One study is told whole.

    Args:
        paths: directories with a receipt, receipts, or files of `eval --json`; the first row is
            what the others are compared with.
        csv, markdown, latex: files to write the table to as well.
        html: a file for a page with the tables and the sparsity of every block.
        png: a file for a picture of the latter.
        sort: a measure's title or a setting to order the rows by, smallest first.
        rows: names of rows, or globs of them; the first row shown is the reference. Empty is all.
        columns: titles of columns, in their order; the rows' names come first. Empty is all.
        pareto: a measure of cost ("non-zero", "on disk", "tokens/s", "memory") that quality is
            drawn against, in the terminal and in `png`.

    Raises:
        RequestError: a directory without a receipt, a half-written or newer one, an unknown
            `sort`, row or column, a file that can't be written, or nothing to draw for `png`.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    given = _single(given)
    found = _study(given)
    if found is None:
        found = _narrowed(_side_by_side(given, sort), rows, columns)
    elif rows or columns or pareto or latex is not None:
        raise RequestError(
            "a study's report has no rows or columns to choose", "`--csv` has a line per cell"
        )
    if pareto is not None:
        from compress.reports.pareto import plane_of

        plane_of(found.runs, pareto)  # refused before anything is written
        found = replace(found, against=pareto)
    if png is not None:
        found.draw(png)
    files = (
        *((csv, found.to_csv), (markdown, found.to_markdown)),
        *((latex, found.to_latex), (html, found.to_html)),
    )
    for place, text in files:
        if place is not None:
            try:
                write_atomic(Path(place), text())
            except OSError as error:
                raise RequestError(f"`{place}` can't be written: {error.strerror}") from error
    return found


def _single(paths: list[str | Path]) -> list[str | Path]:
    """The one receipt of a recipe's run that has only one, told whole; else the paths."""
    rows = listed_rows(Path(paths[0])) if len(paths) == 1 else None
    if rows is None:
        return paths
    if not rows:
        raise RequestError(f"no step of `{paths[0]}` measured anything")
    return [(Path(paths[0]) / rows[0]["receipt"]).parent] if len(rows) == 1 else paths


def _study(paths: Sequence[str | Path]) -> Report | None:
    """The one study that is named, if that is all."""
    if len(paths) != 1:
        return None
    if listed_rows(Path(paths[0])) is not None:
        return None
    file, data = read_json(paths[0])
    if data.get("command") != "calib-study" or not {"cells", "means"} <= data.keys():
        return None
    from compress.reports.study_files import StudyReport

    return StudyReport((), data, file.parent)


def _side_by_side(paths: Sequence[str | Path], sort: str | None) -> Report:
    runs = read_runs(paths)
    return Report(tuple(_sorted(runs, sort) if sort else runs))


def _narrowed(found: Report, rows: Sequence[str], titles: Sequence[str]) -> Report:
    """The rows and columns that are asked for."""
    runs = list(found.runs)
    names = [run.name for run in runs]
    for pattern in rows:
        if not fnmatch.filter(names, pattern):
            raise RequestError(f"no row is called `{pattern}`", near_names(pattern, names))
    if rows:
        runs = [run for p in rows for run in runs if fnmatch.fnmatchcase(run.name, p)]
    made = Report(tuple({run.name: run for run in runs}.values()))
    known = [title.strip() for title in made.cells()[0][1:]]
    for title in titles:
        if title not in known:
            raise RequestError(f"no column is called `{title}`", near_names(title, known))
    return replace(made, shown=tuple(titles))


def _chosen(
    header: list[str], rows: list[list[str]], align: str, titles: Sequence[str]
) -> tuple[list[str], list[list[str]], str]:
    """A table's columns under these titles, behind the first."""
    if not titles:
        return header, rows, align
    bare = [title.strip() for title in header]
    part = [0, *(bare.index(title) for title in titles)]
    picked = [[row[i] for i in part] for row in rows]
    return [header[i] for i in part], picked, "".join(align[i] for i in part)


def _sorted(runs: Sequence[Run], key: str) -> list[Run]:
    measures = {c.title: c for c in columns(runs)}
    settings = {name for run in runs for name in run.settings}
    if key in measures:
        value = measures[key].value
        return sorted(runs, key=lambda r: math.inf if (v := value(r)) is None else v)
    if key == "run":
        return sorted(runs, key=lambda r: r.name)
    if key in settings:
        numeric = all(isinstance(r.settings.get(key, 0), (int, float)) for r in runs)
        return sorted(runs, key=lambda r: r.settings.get(key, 0 if numeric else ""))
    raise RequestError(f"rows can't be sorted by `{key}`", near_names(key, {*measures, *settings}))


def _basis(found: Sequence[Verdict], marks: set[str], rows: int) -> str:
    words = {"*": "* better", "!": "! worse"}
    said = ", ".join(words[mark] for mark in ("*", "!") if mark in marks)
    head = f"{said} than the first row" if said else "no row differs from the first"
    comparisons = f"{rows} comparison{'s' * (rows != 1)}" + (" a column" if rows != 1 else "")
    kinds = {v.test.paired for v in found}
    if kinds == {True}:
        how = "paired on the same examples"
    elif kinds == {False}:
        how = "from standard errors without pairing, so small differences are missed"
    else:
        how = "paired where outcomes of examples were kept, else from standard errors"
    return f"{head}, 95 %, Holm-corrected ({comparisons}); {how}"


def _before(runs: Sequence[Run], measures: Sequence[Column]) -> str:
    """The measures before, where every run has the same."""
    first = runs[0].before
    if first is None or any(run.before != first for run in runs):
        return ""
    dense = Run("before", runs[0].path, after=first)
    shown = [(c.title, c.show(dense)) for c in measures if c.test is not None]
    return ", ".join(f"{title} {text}" for title, text in shown if text)


def _settings(runs: Sequence[Run]) -> list[str]:
    """Settings that differ between rows, the usual ones first."""
    names = dict.fromkeys([*_FIRST_SETTINGS, *(key for run in runs for key in run.settings)])
    return [
        key
        for key in names
        if key not in _NOT_SETTINGS and len({_setting(r.settings.get(key)) for r in runs}) > 1
    ]


def _constants(runs: Sequence[Run]) -> str:
    shown = []
    for key in _FIRST_SETTINGS:
        texts = {_setting(run.settings.get(key)) for run in runs}
        if len(texts) == 1 and texts != {""}:
            shown.append(f"{key} {texts.pop()}")
    return ", ".join(shown)


def _setting(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(_setting, value)) if isinstance(value, (list, tuple)) else str(value)


def _side(runs: Sequence[Run], key: str) -> str:
    values = [run.settings[key] for run in runs if key in run.settings]
    return "r" if all(isinstance(v, (int, float)) for v in values) else "l"


def _pages(lines: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Columns that fit the screen together; the first, the row's name, stands on every page."""
    sizes = [max(len(line[i]) for line in lines) + 3 for i in range(len(lines[0]))]
    first = min(sizes[0], width // 2)
    pages: list[list[int]] = [[0]]
    used = first
    for index in range(1, len(sizes)):
        if used + sizes[index] - 3 > width and len(pages[-1]) > 1:
            pages.append([0])
            used = first
        pages[-1].append(index)
        used += sizes[index]
    return pages


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out += _flat(value, f"{name}.")
        else:
            out.append((name, _setting(value) if isinstance(value, list) else value))
    return out
