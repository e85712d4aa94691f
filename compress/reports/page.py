"""Reports as one HTML file: text, tables that sort, plots of `drawing`; nothing is fetched.

The look is page.css and what clicks do is page.js, both written into the file. Its own policy
forbids it to load anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def html_page(title: str, parts: Sequence[str]) -> str:
    """A whole page of parts in HTML, under a title in plain text."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_asset('page.css')}</style></head>\n<body>"
        + "\n".join([f"<h1>{escape(title)}</h1>", *parts])
        + f"<script>{_asset('page.js')}</script></body></html>\n"
    )


@cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def html_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, sorts: bool = True) -> str:
    """A table that sorts by the column whose title is clicked.

    Args:
        titles: of the columns, in plain text.
        rows: cells in HTML, each a whole `<td>`; see `cell`.
        sorts: whether it does; rows that measure different things have no order.
    """
    head = "".join(_head(title, sorts and bool(title)) for title in titles)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _head(title: str, sorts: bool) -> str:
    if not sorts:
        return f'<th scope="col">{escape(title)}</th>'
    return f'<th scope="col" aria-sort="none"><button type="button">{escape(title)}</button></th>'


def cell(text: str, value: float | None = None) -> str:
    """A cell in plain text; the number that it sorts by, where its text doesn't tell it."""
    key = "" if value is None else f' data-v="{value!r}"'
    return f"<td{key}>{escape(text)}</td>"


def paragraphs(lines: Sequence[str]) -> str:
    """Each line of plain text as a paragraph."""
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def bullets(lines: Sequence[str]) -> str:
    """Lines of plain text as a list."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def folded(summary: str, inner: str, *, is_open: bool = False) -> str:
    """HTML that a click on its summary, in plain text, shows or hides."""
    state = " open" if is_open else ""
    return f"<details{state}><summary>{escape(summary)}</summary>{inner}</details>"
