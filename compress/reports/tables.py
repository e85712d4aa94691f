"""A receipt and a plan as tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compress.reports import formats as fmt
from compress.reports.receipt import Receipt
from compress.reports.records import Cost, Difference, Measures, TaskScore

ALPHA = 0.05
SAME_SPEED = 0.05  # two timings of one model differ by this much on a machine at rest
ZEROS_DENSE = "same: zeros are stored dense"
ZEROS_RUN = "same: no engine here skips zeros"
_BAR = 10  # columns that a sparsity of 1 fills
_PLAN_KNOWN = ("module", "kind", "block", "size", "zeros", "sparsity", "pattern")


class Row(NamedTuple):
    """One line of a before/after table; empty where not measured.

    Attributes:
        change: relative or absolute change, or "same: why".
        note: how sure it is.
    """

    label: str
    before: str
    after: str
    change: str = ""
    note: str = ""


def receipt_rows(receipt: Receipt) -> list[Row]:
    """The lines of a receipt's table: quality, then size, then speed and memory."""
    before, after = receipt.before or Measures(), receipt.after or Measures()
    return [
        *_perplexity_rows(receipt, before, after),
        *_task_rows(receipt, before, after),
        *_other_quality_rows(before, after),
        *_skill_rows(receipt.extra.get("skill") or {}),
        *_size_rows(before, after),
        *_speed_rows(before, after),
    ]


def receipt_table(
    receipt: Receipt,
    output: Path | str | None = None,
    *,
    width: int | None = None,
    terminal: bool | None = None,
) -> str:
    """A receipt as SCREENS shows it: the table, what it took, how to load the result, notes.

    Args:
        receipt: of any command.
        output: the directory written, named in the closing lines.
        width: columns; those of the terminal, at most 80, unless given.
        terminal: whether stdout is one, unless given.
    """
    columns = fmt.screen_width() if width is None else width
    parts = []
    rows = receipt_rows(receipt)
    if rows:
        parts.append(_before_after(rows, columns, terminal))
    closing = _closing(receipt, output)
    if closing:
        parts.append("\n".join(fmt.wrap(line, columns) for line in closing))
    if receipt.notes:
        parts.append(
            "\n".join(fmt.wrap(f"note: {note}", columns, "      ") for note in receipt.notes)
        )
    return fmt.fit_encoding("\n\n".join(parts))


def _before_after(rows: Sequence[Row], width: int, terminal: bool | None) -> str:
    sides = [any(row.before for row in rows), any(row.after for row in rows)]
    pad = max((len(row.change) for row in rows if row.note), default=0)
    cells = []
    for row in rows:
        last = f"{row.change:<{pad}}   {row.note}" if row.note else row.change
        kept = [cell for cell, on in zip((row.before, row.after), sides) if on]
        cells.append([row.label, *kept, last.rstrip()])
    both = all(sides)
    header = ["", *(name for name, on in zip(("before", "after"), sides) if on)]
    header.append("change" if both else "")
    if not both:
        header[1] = "value"
    return fmt.table(header, cells, "l" + "r" * sum(sides) + "l", width=width, terminal=terminal)


def _perplexity_rows(receipt: Receipt, before: Measures, after: Measures) -> list[Row]:
    specs = list(dict.fromkeys([*before.perplexity, *after.perplexity]))
    short = fmt.short_names(specs)
    compared = receipt.comparison.perplexity if receipt.comparison else {}
    rows = []
    for spec in specs:
        old, new = before.perplexity.get(spec), after.perplexity.get(spec)
        shown = new or old
        assert shown is not None
        moved = fmt.change(old.value, new.value) if old and new else ""
        note = "" if shown.stderr is None else f"(± {fmt.quality(shown.stderr)})"
        sure = compared.get(spec)
        if sure is not None and moved != "same":
            note = certainty(sure, lambda v: fmt.signed(v, 2)) or note
        rows.append(
            Row(
                f"perplexity {short[spec]}",
                fmt.quality(old.value) if old else "",
                fmt.quality(new.value) if new else "",
                moved,
                note,
            )
        )
    return rows


def _task_rows(receipt: Receipt, before: Measures, after: Measures) -> list[Row]:
    compared = receipt.comparison.tasks if receipt.comparison else {}
    rows = []
    for task in dict.fromkeys([*before.tasks, *after.tasks]):
        old, new = before.tasks.get(task), after.tasks.get(task)
        shown = new or old
        assert shown is not None
        moved = _moved(old.acc if old else None, new.acc if new else None)
        note = "" if shown.stderr is None else f"(± {shown.stderr:.3f})"
        sure = compared.get(task)
        if sure is not None and moved != "same":
            note = certainty(sure, lambda v: fmt.signed(v, 3)) or note
        rows.append(Row(f"{task}, acc", _acc(old), _acc(new), moved, note))
    return rows


def _acc(score: TaskScore | None) -> str:
    return "" if score is None else f"{score.acc:.3f}"


def _moved(old: float | None, new: float | None, decimals: int = 3) -> str:
    if old is None or new is None:
        return ""
    return "same" if old == new else fmt.signed(new - old, decimals)


def certainty(sure: Difference, show: Callable[[float], str]) -> str:
    """How sure a difference is: its interval, or that it drowns in the noise."""
    within = sure.p is not None and sure.p >= ALPHA
    if sure.p is None and sure.ci95 is not None:
        within = sure.ci95[0] <= 0 <= sure.ci95[1]
    if within:
        p = "" if sure.p is None else f" (p {sure.p:.2f})"
        return f"not distinguishable{p}"
    if sure.ci95 is None:
        return ""
    return f"(95 %: {show(sure.ci95[0])} … {show(sure.ci95[1])})"


def _other_quality_rows(before: Measures, after: Measures) -> list[Row]:
    """Accuracy of images, word and character errors: fractions by data spec."""
    rows = []
    for measure, keys in (("accuracy", ("top1", "top5")), ("wer", ("value",)), ("cer", ("value",))):
        old, new = before.extra.get(measure) or {}, after.extra.get(measure) or {}
        specs = list(dict.fromkeys([*old, *new]))
        short = fmt.short_names(specs)
        for spec in specs:
            for key in keys:
                a, b = (old.get(spec) or {}).get(key), (new.get(spec) or {}).get(key)
                if a is None and b is None:
                    continue
                error = (new.get(spec) or old.get(spec) or {}).get("stderr")
                name = measure if key == "value" else f"{measure} {key}"
                note = "" if error is None or key == "top5" else f"(± {error:.3f})"
                old_text, new_text = ("" if v is None else f"{v:.3f}" for v in (a, b))
                rows.append(Row(f"{name} {short[spec]}", old_text, new_text, _moved(a, b), note))
    return rows


def _skill_rows(skill: Mapping[str, Any]) -> list[Row]:
    """Errors of an estimator by horizon, beside those of persistence, and its skill against it."""
    rows = []
    for h in sorted(skill, key=int):
        row, weeks = skill[h], int(h)
        ahead = f"{weeks} week{'s' * (weeks != 1)} ahead" if weeks else "nowcast"
        low, high = row["ci95"]
        certain = f"(95 %: {fmt.signed(low, 3)} … {fmt.signed(high, 3)}) {row.get('verdict', '')}"
        rows.append(
            Row(
                f"MAE, {ahead}; persistence {fmt.quality(row['persistence_mae'])}",
                "",
                fmt.quality(row["mae"]),
                f"skill {fmt.signed(row['skill'], 3)}",
                certain.rstrip(),
            )
        )
    return rows


def _size_rows(before: Measures, after: Measures) -> list[Row]:
    rows = []
    sparser = _is_sparser(before, after)
    if before.parameters != after.parameters or (before.nonzero, after.nonzero) == (None, None):
        rows += _pair("parameters", before.parameters, after.parameters, fmt.COUNT_UNITS)
    rows += _pair("non-zero weights", before.nonzero, after.nonzero, fmt.COUNT_UNITS)
    macs = (before.extra.get("macs"), after.extra.get("macs"))
    rows += _pair("multiply-adds", *macs, fmt.COUNT_UNITS)
    stored = _pair("bytes on disk", before.bytes, after.bytes, fmt.BYTE_UNITS)
    alike = before.bytes and after.bytes and abs(after.bytes / before.bytes - 1) < 0.01
    if stored and sparser and alike:
        stored = [stored[0]._replace(change=ZEROS_DENSE)]
    return rows + stored


def _is_sparser(before: Measures, after: Measures) -> bool:
    """Whether zeros are all that changed, so that a reader might expect gains that don't come."""
    if before.nonzero is None or after.nonzero is None:
        return False
    return after.nonzero < before.nonzero and before.parameters == after.parameters


def _pair(
    label: str, old: float | None, new: float | None, units: Sequence[str], suffix: str = ""
) -> list[Row]:
    """A row of two sizes in one unit, or nothing where neither was measured."""
    known = [value for value in (old, new) if value is not None]
    if not known:
        return []
    shown = iter(fmt.scaled(known, units))
    texts = ["" if value is None else next(shown) + suffix for value in (old, new)]
    moved = fmt.change(old, new) if old is not None and new is not None else ""
    return [Row(label, texts[0], texts[1], moved)]


def _speed_rows(before: Measures, after: Measures) -> list[Row]:
    rows = []
    old, new = before.speed, after.speed
    sparser = _is_sparser(before, after)
    for label, key in (("prefill", "prefill_tokens_per_s"), ("decode", "decode_tokens_per_s")):
        a, b = getattr(old, key, None), getattr(new, key, None)
        made = _pair(f"{label}, tokens/s", a, b, ("",))
        if made and a and b and abs(b / a - 1) < SAME_SPEED:
            made = [made[0]._replace(change=ZEROS_RUN if sparser else "same")]
        rows += made
    latency = [m.extra.get("latency") or {} for m in (before, after)]
    for key in dict.fromkeys([*latency[0], *latency[1]]):
        seconds = [side.get(key) for side in latency]
        label = "latency, " + key.removesuffix("_s").replace("_", " ")
        in_ms = [None if v is None else 1000 * v for v in seconds]
        rows += _pair(label, in_ms[0], in_ms[1], ("",), " ms")
    peak = [getattr(side, "peak_bytes", None) for side in (old, new)]
    memory = _pair("peak memory", peak[0], peak[1], fmt.BYTE_UNITS)
    if memory and memory[0].before == memory[0].after:
        memory = [memory[0]._replace(change="same")]
    return rows + memory


def _closing(receipt: Receipt, output: Path | str | None) -> list[str]:
    lines = []
    if receipt.status != "ok":
        lines.append(f"status: {receipt.status}")
    if receipt.cost is not None:
        lines.append(cost_line(receipt.cost))
    if output is not None and receipt.model is not None:
        auto = auto_class(receipt.model.architecture)
        lines.append(f"{output}   loads with {auto}.from_pretrained")
    return [line for line in lines if line]


def cost_line(cost: Cost) -> str:
    """What a run took: "done in 3:07  (spectra 0:09, prune 2:21; 2.3 passes; peak 2.1 GB)"."""
    total = sum(cost.seconds.values())
    long = total >= 59.95
    spent = {name: s for name, s in cost.seconds.items() if s >= (0.5 if long else 0.05)}
    parts = [", ".join(f"{name} {fmt.duration(s, long)}" for name, s in spent.items())]
    if cost.passes is not None:
        parts.append(f"{cost.passes:.1f} passes")
    if cost.peak_bytes is not None:
        parts.append(f"peak {fmt.bytes_text(cost.peak_bytes)}")
    inner = "; ".join(part for part in parts if part)
    if not cost.seconds:
        return inner
    return f"done in {fmt.duration(total)}" + (f"  ({inner})" if inner else "")


def auto_class(architecture: str | None) -> str:
    """The Auto class that loads a model of this architecture, such as "LlamaForCausalLM"."""
    name = architecture or ""
    ending = name.partition("For")[2]
    known = {
        "CausalLM", "MaskedLM", "SequenceClassification", "TokenClassification",
        "QuestionAnswering", "ImageClassification", "CTC", "ConditionalGeneration",
    }  # fmt: skip
    if name.endswith("LMHeadModel"):
        ending = "CausalLM"
    if ending not in known:
        return "AutoModel"
    return "AutoModelFor" + {"ConditionalGeneration": "Seq2SeqLM"}.get(ending, ending)


def plan_table(
    rows: Sequence[Mapping[str, Any]], *, width: int | None = None, terminal: bool | None = None
) -> str:
    """A plan for people: a line per block where rows count zeros, else a line per module.

    Args:
        rows: of the plan file.
        width: columns; those of the terminal, at most 80, unless given.
        terminal: whether stdout is one, unless given; bars stand on a terminal only.
    """
    if not rows:
        return "the plan changes nothing"
    if all({"zeros", "size", "block"} <= set(row) for row in rows):
        text = _zeros_table(rows, width, fmt.on_terminal() if terminal is None else terminal)
    else:
        text = _module_table(rows, width, terminal)
    return fmt.fit_encoding(text)


def _zeros_table(rows: Sequence[Mapping[str, Any]], width: int | None, terminal: bool) -> str:
    blocks: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        blocks.setdefault(row["block"], []).append(row)
    measured = [k for k in rows[0] if k not in _PLAN_KNOWN and all(_is_number(r, k) for r in rows)]
    metric = measured[0] if measured else ""
    sizes = fmt.scaled([sum(r["size"] for r in part) for part in blocks.values()], fmt.COUNT_UNITS)
    cells = []
    for (block, part), size in zip(blocks.items(), sizes):
        share = _share(part)
        shares = [r["zeros"] / r["size"] for r in part]
        spread = max(shares) - min(shares) > 0.0005
        line = [block, size, f"{share:.3f}"]
        line.append(f"{min(shares):.3f} … {max(shares):.3f}" if spread else "")
        line.append(f"{statistics.fmean(r[metric] for r in part):.3f}" if metric else "")
        line.append("█" * round(_BAR * share) if terminal else "")
        cells.append(line)
    total = sum(r["size"] for r in rows)
    cells.append(
        [f"all, {len(rows)} matrices", fmt.count_text(total), f"{_share(rows):.3f}", "", "", ""]
    )
    header = ["block", "weights", "sparsity", "by matrix", metric, ""]
    used = [i for i, title in enumerate(header) if i < 3 or any(line[i] for line in cells)]
    chosen = [[line[i] for i in used] for line in cells]
    return fmt.table(
        [header[i] for i in used], chosen, "".join("lrrrrl"[i] for i in used),
        width=width, terminal=terminal,
    )  # fmt: skip


def _share(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(r["zeros"] for r in rows) / max(sum(r["size"] for r in rows), 1)


def _is_number(row: Mapping[str, Any], key: str) -> bool:
    return isinstance(row.get(key), (int, float)) and not isinstance(row[key], bool)


def _module_table(
    rows: Sequence[Mapping[str, Any]], width: int | None, terminal: bool | None
) -> str:
    """Rows of any kind of plan: every scalar that they hold, numbers to the right."""
    keys = list(dict.fromkeys(k for row in rows for k, v in row.items() if not _is_nested(v)))
    numeric = {k for k in keys if all(_is_number(row, k) for row in rows if k in row)}
    cells = [
        [f"{row[k]:g}" if k in row and k in numeric else str(row.get(k, "")) for k in keys]
        for row in rows
    ]
    align = "".join("r" if k in numeric else "l" for k in keys)
    return fmt.table(keys, cells, align, width=width, terminal=terminal)


def _is_nested(value: object) -> bool:
    return isinstance(value, (Mapping, list))
