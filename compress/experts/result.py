"""What `cd_moe_condense` hands back: the plan, the receipt, the place, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compress.checkpoints.plan import Plan
from compress.checkpoints.source import Source
from compress.experts.layers import ExpertLayer
from compress.experts.settings import CondenseSettings
from compress.jobs import Made
from compress.reports.headers import header_line, model_line
from compress.reports.receipt import Receipt

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class CondenseResult(Made):
    """What `cd_moe_condense` did.

    The plan has a row per condensed layer: its experts, constants and held-out errors.
    """

    def render(self) -> str:
        """The layers, and the receipt if there is one, as tables for people."""
        from compress.reports.tables import receipt_table

        shown = [usage_map(self.plan), layer_table(self.plan)]
        if self.receipt is not None:
            shown += [drift_chart(self.receipt), tuned_table(self.receipt)]
            shown.append(active_line(self.receipt))
            shown.append(receipt_table(self.receipt, output=self.output))
        return "\n\n".join(part for part in shown if part)


def layer_table(plan: Plan) -> str:
    """The condensed layers with their held-out errors, a line each."""
    from compress.reports import formats as fmt

    if any("errors" not in row for row in plan.rows):
        return _fewer_table(plan)
    lines = [
        [
            str(row["layer"]),
            ", ".join(map(str, row["experts"])) or "shared alone",
            str(row["width"] + row.get("shared", 0)),
            *(
                f"{row['errors'][name]:.3f}" if name in row["errors"] else ""
                for name in ("constants", "least_squares", "refit")
            ),
        ]
        for row in plan.rows
    ]
    header = ["layer", "experts kept", "width", "mean weights", "least sq.", "refitted"]
    words = "error on held-out tokens: |condensed - layer|² / |layer|²"
    return fmt.table(header, lines, "rlrrrr") + "\n" + words


def drift_chart(receipt: Receipt) -> str:
    """How far every decoder layer's output has drifted from the original's."""
    from compress.reports import charts
    from compress.reports import formats as fmt

    entry = receipt.extra["experts"]
    rows, condensed = entry["divergence"], set(entry["condensed"])
    labels = [f"layer {row['layer']}" + " *" * (row["layer"] in condensed) for row in rows]
    drawn = charts.bars(labels, [row["js"] for row in rows], decimals=5, width=fmt.screen_width())
    title = "divergence of each layer's output from the original's, nats (* condensed)"
    return fmt.fit_encoding(f"{title}\n{drawn}")


def active_line(receipt: Receipt) -> str:
    """Parameters that a token runs through."""
    from compress.reports import formats as fmt

    found = receipt.extra["experts"]["active_parameters"]
    moved = fmt.change(found["before"], found["after"])
    before, after = (fmt.count_text(found[side]) for side in ("before", "after"))
    return f"active parameters   {before} before, {after} after   {moved}"


def tuned_table(receipt: Receipt) -> str:
    """What fine-tuning brought, "" without it."""
    from compress.reports import formats as fmt

    training = receipt.extra.get("training")
    if not training:
        return ""
    middle = receipt.extra.get("condensed", {})
    rows = []
    for kind, key in (("perplexity", "value"), ("tasks", "acc")):
        for name, found in middle.get(kind, {}).items():
            old, new = (
                getattr(getattr(side, kind)[name], key) for side in (receipt.before, receipt.after)
            )
            rows.append([name, *(fmt.quality(v) for v in (old, found[key], new))])
    some = training["trained"]
    line = (
        f"fine-tuned {fmt.count_text(some['parameters'])} of {fmt.count_text(some['of'])} "
        f"parameters for {training['steps']:,} steps, {fmt.count_text(training['tokens'])} tokens"
    )
    if not rows:
        return line
    return fmt.table(["", "before", "condensed", "tuned"], rows, "lrrr") + "\n" + line


def usage_map(plan: Plan) -> str:
    """How often each expert of the layers measured is chosen, as shades."""
    from compress.reports import formats as fmt
    from compress.reports.heatmap import heatmap

    cells, rows, columns, ends = _usage(plan)
    title = "share of the calibration tokens that each expert (across) of a layer (down) gets"
    drawn = heatmap(cells, rows, columns, ends=ends, width=fmt.screen_width())
    return fmt.fit_encoding(f"{title}\n{drawn}")


def draw_usage(plan: Plan, path: Path) -> None:
    """Write the same as PNG."""
    from compress.reports.heatmap import draw_heatmap
    from compress.reports.pictures import new_figure, save_figure

    cells, rows, columns, ends = _usage(plan)
    size = (min(3 + 0.25 * len(columns), 16), min(2 + 0.25 * len(rows), 16))
    figure, axes = new_figure(1, 1, size)
    plot = axes[0, 0]
    draw_heatmap(plot, figure, cells, ends)
    plot.set_yticks(range(len(rows)), rows)
    plot.set_title("share of tokens")
    plot.set_xlabel("expert")
    plot.set_ylabel("decoder layer")
    save_figure(figure, path)


def _usage(plan: Plan) -> tuple[list[list[float]], list[str], list[str], tuple[float, float]]:
    """Return the cells, the names of layers and experts, and the ends of the shades."""
    usage = plan.options.get("usage") or {str(row["layer"]): row["usage"] for row in plan.rows}
    most = max(len(values) for values in usage.values())
    cells = [[*values, *[float("nan")] * (most - len(values))] for values in usage.values()]
    top = max(value for values in usage.values() for value in values)
    return cells, list(usage), [str(e) for e in range(most)], (0.0, top or 1.0)


def _fewer_table(plan: Plan) -> str:
    """Layers that stay sparse: which experts are left, and how much they were used."""
    from compress.reports import formats as fmt

    lines = []
    for row in plan.rows:
        groups = row.get("clusters") or [[e] for e in row["experts"]]
        used = [row["usage"][e] for group in groups for e in group]
        names = ["+".join(map(str, group)) for group in groups]
        share = sum(used) / max(sum(row["usage"]), 1e-12)
        lines.append([str(row["layer"]), " ".join(names), f"{share:.0%}"])
    return fmt.table(["layer", "experts left", "of the routing"], lines, "rlr")


def describe_model(source: Source, layers: Sequence[ExpertLayer]) -> str:
    """The header's line of the model and its experts."""
    blocks = source.config.get_text_config().num_hidden_layers
    line = model_line(
        source.name,
        source.config.model_type,
        blocks,
        source.parameters_on_disk(),
        str(source.dtype).removeprefix("torch."),
    )
    one = layers[0]
    shared = f", shared {one.shared_width}" if one.shared else ", no shared expert"
    what = f"{len(layers)} layers of {one.count} × {one.width}{shared}"
    return line + "\n" + header_line("experts", what)


def describe_plan(plan: Plan, settings: CondenseSettings, layers: Sequence[ExpertLayer]) -> str:
    """The header's line of what is done."""
    numbers = ", ".join(str(row["layer"]) for row in plan.rows)
    how = f"{settings.rule}, {settings.weights}, refit {settings.refit}"
    if settings.mode != "dense":
        how = f"{settings.mode}, {len(plan.rows[0]['experts'])} experts a layer"
        how += f", by {settings.rule}" if settings.mode == "prune" else ""
    form = plan.options.get("form")
    return header_line("plan", f"layers {numbers} of {len(layers)}", how, f"saved as {form}")
