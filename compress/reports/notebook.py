"""Results in a notebook: the mixin by which every command's result shows itself as HTML."""

from __future__ import annotations

from html import escape
from typing import Any


class Displayable:
    """A result that a notebook shows as tables, and a terminal by `render()`.

    A class that takes it in has `render()`; a `receipt` or `cells()` where it has one.
    """

    def render(self) -> str:
        """The result as text for people."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        """The result as a piece of HTML that fetches nothing and runs no script."""
        return fragment(self)


def fragment(result: Any) -> str:
    """A result in HTML: its receipt or its table of runs, and what a terminal shows.

    Args:
        result: has `render()`; a receipt, or the cells of a table of runs, where it has any.
    """
    from compress.reports.html import receipt_parts, runs_parts
    from compress.reports.page import folded

    text = f"<pre>{escape(result.render())}</pre>"
    receipt = getattr(result, "receipt", None)
    if receipt is not None:
        title, parts = receipt_parts(receipt)
    elif hasattr(result, "cells") and len(result.runs) > 1:
        title, parts = runs_parts(result)
    else:
        return f"<div>{text}</div>"
    output = getattr(result, "output", None)
    where = f"<p><code>{escape(str(output))}</code></p>" if output is not None else ""
    heading = f"<strong>{escape(title)}</strong>"
    return "".join(["<div>", heading, *parts, where, folded("as in a terminal", text), "</div>"])
