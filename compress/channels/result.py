"""What `pass_prune` hands back: the plan, the receipt, the place, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from compress.channels.groups import Group
from compress.checkpoints.plan import Plan
from compress.jobs import Made
from compress.reports.headers import header_line
from compress.reports.receipt import Receipt

if TYPE_CHECKING:
    from compress.channels.preparing import Job

_STAGES = ("cut", "repaired", "tuned")


@dataclass(frozen=True)
class PruneResult(Made):
    """What `pass_prune` did.

    The plan has a row per coupled group: how wide it was, which units stay, what is coupled.
    """

    def render(self) -> str:
        """The widths, the methods compared, and the receipt, as tables for people."""
        from compress.reports.tables import receipt_table

        shown = [widths_chart(self.plan)]
        if self.receipt is not None:
            shown.append(methods_table(self.receipt))
            shown.append(receipt_table(self.receipt, output=self.output))
        return "\n\n".join(part for part in shown if part)


def plan_rows(groups: Sequence[Group], masks: Sequence[Tensor]) -> list[dict[str, Any]]:
    """A plan's rows: one per group, with the units that stay."""
    rows = []
    for group, mask in zip(groups, masks, strict=True):
        kept = mask.nonzero()[:, 0].tolist()
        row = {
            "module": group.name,
            "kind": group.kind,
            "width": group.width,
            "kept": len(kept),
            "exact": group.exact,
            "keep": kept,
            "coupled": list(dict.fromkeys(member.module for member in group.members)),
        }
        rows.append({**row, "why": group.why} if group.why else row)
    return rows


def widths_chart(plan: Plan) -> str:
    """How much of each group stays, as bars."""
    from compress.reports import charts
    from compress.reports import formats as fmt

    labels = [f"{_short(row['module'])} {row['kept']}/{row['width']}" for row in plan.rows]
    shares = [row["kept"] / row["width"] for row in plan.rows]
    title = "units kept of each coupled group, and their share"
    drawn = charts.bars(labels, shares, decimals=2, width=fmt.screen_width())
    return fmt.fit_encoding(f"{title}\n{drawn}")


def draw_widths(plan: Plan, path: Path) -> None:
    """Write the same as PNG: widths before, and what stays of them."""
    from compress.reports.pictures import new_figure, save_figure

    rows = plan.rows
    figure, axes = new_figure(1, 1, (8, min(1.5 + 0.22 * len(rows), 30)))
    plot = axes[0, 0]
    places = range(len(rows))
    plot.barh(places, [row["width"] for row in rows], color="#d0d7de", label="before")
    plot.barh(places, [row["kept"] for row in rows], color="#0969da", label="kept")
    plot.set_yticks(places, [_short(row["module"]) for row in rows], fontsize=6)
    plot.invert_yaxis()
    plot.set_xlabel("units (channels, heads, dimensions of a head)")
    plot.legend(loc="lower right")
    save_figure(figure, path)


def methods_table(receipt: Receipt) -> str:
    """Every method that was run on the same budget: accuracy after each step."""
    from compress.reports import formats as fmt

    arms: Mapping[str, Any] = (receipt.extra.get("channels") or {}).get("methods") or {}
    stages = [s for s in _STAGES if any(s in arm for arm in arms.values())]
    if len(arms) < 2 or not stages:
        return ""
    own = receipt.settings.get("method")
    rows = []
    for name in sorted(arms, key=lambda name: name != own):  # a receipt's file sorts its keys
        arm = arms[name]
        label = f"no search: {name}" if name == "l1" and own != "l1" else name
        cells = ["" if s not in arm else _accuracy(arm[s]) for s in stages]
        rows.append([label, f"{arm['macs']:.2f}", *cells])
    header = ["method", "MACs", *stages]
    words = "top-1 on the test images after each step, ± one standard error"
    return fmt.table(header, rows, "lr" + "r" * len(stages)) + "\n" + words


def _accuracy(entry: Mapping[str, Any]) -> str:
    return f"{entry['top1']:.3f} ± {entry['stderr']:.3f}"


def describe_model(job: Job) -> str:
    """The header's lines of the model and its groups."""
    from compress.reports import formats as fmt

    source = job.source
    whole = float(job.costs.macs_of(job.costs.widths))
    side = "×".join(str(n) for n in job.example.shape[-2:])
    dtype = str(source.dtype).removeprefix("torch.")
    count = fmt.count_text(source.parameters_on_disk())
    line = header_line(
        "model",
        source.name,
        f"{source.config.model_type}, {count} parameters, {dtype}, "
        f"{fmt.count_text(whole)} MACs at {side}",
    )
    kinds: dict[str, int] = {}
    for group in job.groups:
        kinds[group.kind] = kinds.get(group.kind, 0) + 1
    units = sum(group.width for group in job.groups)
    what = ", ".join(f"{count} of {kind}" for kind, count in kinds.items())
    return line + "\n" + header_line("groups", f"{len(job.groups)} with {units} units: {what}")


def describe_data(job: Job) -> str:
    """The header's line of the images."""
    if job.data is None:
        return header_line("data", "none: nothing is scored or repaired")
    data = job.data
    parts = ", ".join(
        f"{len(images)} {name}"
        for name, images in (
            ("train", data.train), ("validation", data.validation), ("test", data.test)
        )
    )  # fmt: skip
    return header_line("data", data.name, parts, f"{len(data.classes)} classes")


def _short(name: str) -> str:
    """Cut the front of a module's name, which all share."""
    parts = name.split(".")
    return ".".join(parts[1:]) if len(parts) > 1 else name
