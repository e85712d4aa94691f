"""Numbers, sizes, times and changes as people read them, and the one layout of all tables.

Minus is U+2212 and units are decimal (1 GB = 10^9 bytes). Text is 80 columns wide unless the
terminal is narrower; bold and dim are added on a terminal and carry no meaning.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

COUNT_UNITS = ("", "K", "M", "B", "T")
BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")
MINUS = "−"
_ASCII = str.maketrans(
    {
        "−": "-",
        "±": "+/-",
        "…": "...",
        "×": "x",
        "·": "-",
        "–": "-",
        "—": "-",
        "─": "-",
        "█": "#",
        "→": "->",
    }
)


def signed(value: float, decimals: int) -> str:
    """A number with its sign, as "+0.041" or "−0.041"; what rounds to zero has none."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return (MINUS if value < 0 else "+") + text


def quality(value: float) -> str:
    """A perplexity or loss: 9.76, 123.4, 1234, 1.2e+06."""
    if abs(value) >= 1e5:
        return f"{value:.1e}"
    return f"{value:.{2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0}f}"


def scaled(values: Sequence[float], units: Sequence[str], base: float = 1000.0) -> list[str]:
    """Numbers of one row in the unit of the largest, three digits of it: "1.24 B", "0.66 B".

    A value under a twentieth of the largest gets its own unit, so that it doesn't read as zero.
    """
    top = max(map(abs, values), default=0.0)
    out = []
    for value in values:
        lead = abs(value) if 0 < abs(value) < top / 20 else top
        power = 0
        while power + 1 < len(units) and lead >= 0.9995 * base ** (power + 1):
            power += 1
        shown, size = value / base**power, lead / base**power
        decimals = 0 if power == 0 and isinstance(value, int) else 2 if size < 9.995 else 1
        decimals = 0 if size >= 99.95 else decimals
        out.append(f"{shown:.{decimals}f} {units[power]}".rstrip())
    return out


def count_text(value: float) -> str:
    """A number of weights: "1.24 B"."""
    return scaled([value], COUNT_UNITS)[0]


def bytes_text(value: float) -> str:
    """A size: "2.47 GB"."""
    return scaled([value], BYTE_UNITS)[0]


def duration(seconds: float, colons: bool = False) -> str:
    """Seconds as "4.2 s", "3:07" or "1:02:03"; `colons` writes short ones as "0:04" too."""
    if seconds < 59.95 and not colons:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def change(before: float, after: float) -> str:
    """A relative change: "+33 %", "−0.4 %", "×13", "same"; empty where `before` is zero."""
    if before == after:
        return "same"
    if before == 0 or not math.isfinite(after / before):
        return ""
    ratio = after / before
    if ratio >= 10:
        return f"×{ratio:.0f}" if ratio < 1e4 else f"×{ratio:.1e}"
    share = 100 * (ratio - 1)
    if abs(share) < 0.05:
        return "under 0.1 %"
    return f"{signed(share, 0 if abs(share) >= 9.95 else 1)} %"


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Paths by their last part, where that tells them apart; other names as they are."""
    every = list(dict.fromkeys(names))
    last = {name: os.path.basename(name.rstrip("/\\")) or name for name in every}
    taken = list(last.values())
    return {name: last[name] if taken.count(last[name]) == 1 else name for name in every}


def screen_width() -> int:
    """Columns to fill: 80, or fewer on a narrower terminal."""
    return min(max(shutil.get_terminal_size((80, 24)).columns, 40), 80) if on_terminal() else 80


def on_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def fit_encoding(text: str, encoding: str | None = None) -> str:
    """`text` in what `encoding` (stdout's unless given) can say: "-" for "−", "+/-" for "±"."""
    name = encoding or getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(name)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(name, "replace").decode(name)
    return text


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    align: str,
    *,
    width: int | None = None,
    terminal: bool | None = None,
) -> str:
    """Lay out text in columns without boxes; cells that don't fit are folded, never cut.

    Args:
        header: a title per column.
        rows: cells, one string per column.
        align: "l" or "r" per column.
        width: columns of the screen; screen_width() unless given.
        terminal: bold header; whether stdout is a terminal unless given.

    Returns:
        Lines without trailing blanks, joined by newlines.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    lines = [list(header), *map(list, rows)]
    for index, side in enumerate(align):
        if side == "r":
            # Padded here: rich strips the blanks that stand in for a missing mark.
            wide = max(cell_len(line[index]) for line in lines)
            for line in lines:
                line[index] = " " * (wide - cell_len(line[index])) + line[index]
        grid.add_column(Text(lines[0][index]), overflow="fold", no_wrap=side == "r")
    for line in lines[1:]:
        grid.add_row(*map(Text, line))
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=screen_width() if width is None else width,
        color_system=None,
        legacy_windows=False,
        _environ={},
    )
    console.print(grid)
    first, *rest = [line.rstrip() for line in stream.getvalue().splitlines()]
    styled = on_terminal() if terminal is None else terminal
    return "\n".join([bold(first) if styled else first, *rest])


def bold(text: str) -> str:
    """`text` in bold for a terminal, unless NO_COLOR asks for plain text."""
    return text if os.environ.get("NO_COLOR") or not text else f"\x1b[1m{text}\x1b[0m"


def wrap(text: str, width: int, indent: str = "  ") -> str:
    """Fold one paragraph between words, later lines indented; a long path stays whole."""
    return textwrap.fill(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def latex(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """A table as LaTeX's tabular with the rules of booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(_tex(cell.strip()) for cell in cells) + " \\\\\n"

    body = "".join(map(line, rows))
    return (
        f"\\begin{{tabular}}{{{align}}}\n\\toprule\n{line(header)}\\midrule\n{body}"
        "\\bottomrule\n\\end{tabular}\n"
    )


def _tex(text: str) -> str:
    """Text with what LaTeX takes for its own written out."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
    special |= {"±": r"$\pm$", "−": "$-$", "×": r"$\times$", "*": "$^{*}$", "…": r"\ldots{}"}
    return "".join(special.get(sign, sign) for sign in text)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """A table as GitHub Markdown; `align` has "l" or "r" for each column."""

    def line(cells: Sequence[str]) -> str:
        safe = [cell.strip().replace("|", "\\|").replace("*", "\\*") for cell in cells]
        return f"| {' | '.join(safe)} |\n"

    rule = f"| {' | '.join('---:' if side == 'r' else '---' for side in align)} |\n"
    return line(header) + rule + "".join(map(line, rows))
