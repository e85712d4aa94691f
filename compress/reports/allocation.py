"""How much each block lost, beside other allocations, and how those score: tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.reports import formats as fmt
from compress.reports.records import Difference, decode
from compress.reports.tables import certainty

BAR = 20  # columns that a sparsity of 1 fills, where the table leaves them


def allocation_text(
    found: Mapping[str, Any] | None, *, width: int | None = None, terminal: bool | None = None
) -> str:
    """The scores of the allocations compared, and the share of every block by each of them.

    Args:
        found: a receipt's "allocation": "own", the run's, "blocks", "shares" by allocation, and as
            far as there are such, "line", "search", "scores" and "comparison".
        width: columns; those of the terminal, at most 80, unless given.
        terminal: whether stdout is one, unless given; bars stand on a terminal only.

    Returns:
        Text, "" where there is nothing to show.
    """
    if not found or not found.get("shares"):
        return ""
    columns = fmt.screen_width() if width is None else width
    bars = fmt.on_terminal() if terminal is None else terminal
    parts = [*_score_tables(found, columns, bars), _share_table(found, columns, bars)]
    remarks = "\n".join(fmt.wrap(line, columns) for line in allocation_remarks(found))
    return fmt.fit_encoding("\n\n".join(parts) + (f"\n{remarks}" if remarks else ""))


def names_in_order(found: Mapping[str, Any]) -> list[str]:
    """The allocations that have shares, the run's own first: a receipt's file sorts its keys."""
    order = [str(found.get("own", "")), "uniform", "line", "atp", *found["shares"]]
    return [name for name in dict.fromkeys(order) if name in found["shares"]]


def score_rows(found: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """For each text and task its title, and by allocation its name, score, and the own minus it.

    Args:
        found: as `allocation_text` takes it.
    """
    scores, compared = found.get("scores") or {}, found.get("comparison") or {}
    tables = []
    for kind, title, digits in (("perplexity", "perplexity", 2), ("tasks", "accuracy", 3)):
        keys = list(dict.fromkeys(key for one in scores.values() for key in one.get(kind, {})))
        short = fmt.short_names(keys)
        for key in keys:
            rows = []
            for name in names_in_order(found):
                entry = scores.get(name, {}).get(kind, {}).get(key)
                if entry is not None:
                    difference = compared.get(name, {}).get(kind, {}).get(key)
                    rows.append([name, _score(entry), _against(difference, digits)])
            tables.append((f"{title} {short[key]}", rows))
    return tables


def _score_tables(found: Mapping[str, Any], width: int, terminal: bool) -> list[str]:
    own = names_in_order(found)[0]
    return [
        fmt.table(
            ["allocation", title, f"{own} minus it"], rows, "lll", width=width, terminal=terminal
        )
        for title, rows in score_rows(found)
    ]


def _score(entry: Mapping[str, Any]) -> str:
    value, error = entry.get("value", entry.get("acc", 0.0)), entry.get("stderr")
    if "value" in entry:
        return fmt.quality(value) + ("" if error is None else f" ± {fmt.quality(error)}")
    return f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _against(entry: Mapping[str, Any] | None, digits: int) -> str:
    """A difference and its interval, or that it drowns in the noise, by the corrected p."""
    if entry is None:
        return ""
    sure = decode(Difference, {**entry, "p": entry.get("p_holm", entry.get("p"))}, "comparison")
    note = certainty(sure, lambda value: fmt.signed(value, digits))
    within = note.startswith("not")
    return note if within else f"{fmt.signed(sure.difference, digits)} {note}".rstrip()


def _share_table(found: Mapping[str, Any], width: int, terminal: bool) -> str:
    shares: Mapping[str, Sequence[float]] = found["shares"]
    names = names_in_order(found)
    own = shares[names[0]]
    blocks = [str(block) for block in found["blocks"]]
    used = max(len("sparsity by block"), *map(len, blocks))
    used += sum(max(len(name), 5) + 3 for name in names) + 3
    room = min(BAR, width - used) if terminal else 0
    rows = []
    for i, block in enumerate(blocks):
        bar = ["█" * round(room * own[i])] if room >= 5 else []
        rows.append([block, *(f"{shares[name][i]:.3f}" for name in names), *bar])
    head = ["sparsity by block", *names, *([""] if room >= 5 else [])]
    align = "l" + "r" * len(names) + "l" * (room >= 5)
    return fmt.table(head, rows, align, width=width, terminal=terminal)


def allocation_remarks(found: Mapping[str, Any]) -> list[str]:
    """What the columns rest on, a sentence each.

    Args:
        found: as `allocation_text` takes it.
    """
    lines = []
    names, line, search = list(found["shares"]), found.get("line"), found.get("search")
    if found.get("scores"):
        lines.append(
            "all pruned alike in one walk, to the same number of zeros; differences are paired on "
            "the same examples; whether there is one goes by p after Holm's correction"
        )
    searched = bool(search and search.get("searched") and "atp" in names)
    unsearched = "line" if "line" in names else "atp"
    if line is not None and unsearched in names and (unsearched == "line" or not searched):
        lines.append(
            f"{unsearched}: shares rise by {line['beta']:.4f} from block to block, half the "
            "steepest that the bounds allow; not searched"
            + ("" if unsearched == "line" else ": `--compare-allocations` does, and scores it")
        )
    if searched:
        assert search is not None
        lines.append(
            f"atp: shares rise by {search['beta']:.4f}, the best of {len(search['candidates'])} "
            f"slopes on {search['held_out_windows']} held-out windows of the calibration text"
        )
    return lines
