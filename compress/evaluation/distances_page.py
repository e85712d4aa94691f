"""The table of distances: a row a block, with a bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.reports.charts import glyphs, number
from compress.reports.formats import MINUS, screen_width, short_names, table, wrap

_BAR = 16


def distances_block(found: Mapping[str, Any], name: str, against: str) -> str:
    """Render one model's distances.

    Args:
        found: what `Distances.as_dict` gives.
        name, against: what to call the two models.
    """
    blocks, data = found["blocks"], found.get("data")
    run = any("activations" in block for block in blocks)
    key = "activations" if run else "weights"
    top = max((block.get(key, 0.0) for block in blocks), default=0.0)
    rows = []
    for block in [*blocks, found["outside"]]:
        cells = [_figure(block.get("weights"))]
        if run:
            cosine = block.get("cosine")
            cells += [
                _figure(block.get("activations")),
                MINUS if cosine is None else _cosine(cosine),
            ]
        bar = _bar(block[key] / top) if top > 0 and "block" in block and key in block else ""
        rows.append([block.get("block", "outside the blocks"), *cells, bar])
    heads = ["block", "weights", *(["activations", "cosine"] if run else []), ""]
    said = f"distance of {name} from {against}"
    if data:
        said += f", {data['windows']} × {data['seqlen']} tokens of "
        said += short_names([data["spec"]])[data["spec"]]
    body = table(heads, rows, "l" + "r" * (len(heads) - 2) + "l", width=screen_width())
    return "\n".join([said, body, *_unlike(blocks)])


def _figure(value: float | None) -> str:
    return MINUS if value is None else number(value)


def _cosine(value: float) -> str:
    """Return a cosine of which only exactly 1 reads as 1."""
    if value == 1:
        return "1"
    text = f"{value:.4f}".replace("-", MINUS)
    return f"1{MINUS}{number(1 - value)}" if text == "1.0000" else text


def _bar(share: float) -> str:
    marks = glyphs()
    full, part = divmod(round(8 * _BAR * min(max(share, 0.0), 1.0)), 8)
    return (marks.right[8] * full + (marks.right[part] if part else "")).rstrip()


def _unlike(blocks: list[Mapping[str, Any]]) -> list[str]:
    """Say of how many weights there is no distance, and why of the first."""
    unlike = [
        row
        for block in blocks
        for row in block["modules"]
        if "distance" not in row and not row["reason"].startswith("all zeros")
    ]
    if not unlike:
        return []
    first = unlike[0]
    weights = "1 weight is" if len(unlike) == 1 else f"{len(unlike)} weights are"
    said = f"{weights} in no distance, such as {first['module']}: {first['reason']}"
    return [wrap(said, screen_width(), "")]
