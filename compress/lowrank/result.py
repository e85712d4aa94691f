"""What `lowrank_svd` hands back: the plan, the receipt, the place, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.checkpoints.plan import Plan
from compress.jobs import Made
from compress.lowrank.preparing import Job
from compress.reports.headers import header_line

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class LowRankResult(Made):
    """What `lowrank_svd` did.

    The plan has a row per layer: its rank and what that loses.
    """

    def render(self) -> str:
        """The ranks, and the receipt if there is one, as tables for people."""
        from compress.reports.tables import receipt_table

        shown = [rank_table(self.plan.rows)]
        if self.receipt is not None:
            shown.append(receipt_table(self.receipt, output=self.output))
        return "\n\n".join(part for part in shown if part)


def rank_table(rows: Sequence[dict[str, Any]]) -> str:
    """The ranks by kind of layer: how many, what they keep, what they lose."""
    from compress.reports import formats as fmt

    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in rows:
        leaf = row["module"].rpartition(".")[2]
        groups.setdefault((leaf, row["out"], row["in"]), []).append(row)
    lines = [
        [leaf, f"{out} × {into}", *_summary(group)] for (leaf, out, into), group in groups.items()
    ]
    lines.append([f"all, {len(rows)} layers", "", *_summary(rows)])
    header = ["layers", "out × in", "ranks", "dense", "weights kept", "error", "optimum"]
    used = [i for i, title in enumerate(header) if i < 5 or any(line[i] for line in lines)]
    table = fmt.table(
        [header[i] for i in used],
        [[line[i] for i in used] for line in lines],
        "".join("llrrrrr"[i] for i in used),
    )
    words = "error: |WX - W'X| / |WX| on the calibration tokens, a mean over the layers factored"
    return fmt.fit_encoding(
        table + ("\n" + fmt.wrap(words, fmt.screen_width()) if 5 in used else "")
    )


def _summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Ranks, how many stay dense, the share of weights kept, errors."""
    ranked = [row for row in rows if row["kind"] == "lowrank"]
    ranks = [row["rank"] for row in ranked]
    span = "" if not ranks else f"{min(ranks)} … {max(ranks)}"
    if ranks and min(ranks) == max(ranks):
        span = str(ranks[0])
    errors = [row.get("error", row.get("foretold")) for row in ranked]
    best = [row.get("optimum") for row in ranked]
    dense = str(len(rows) - len(ranks))
    return [span, dense, f"{kept_share(rows):.3f}", _mean(errors), _mean(best)]


def kept_share(rows: Sequence[dict[str, Any]]) -> float:
    """Weights held by the layers' factors, or by the layers that stay, over what they held."""
    total = sum(row["weights"] for row in rows)
    return sum(row["weights"] * row.get("kept", 1.0) for row in rows) / total if total else 1.0


def _mean(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{sum(known) / len(known):.3f}" if known else ""


def describe_plan(job: Job, plan: Plan, given: bool) -> str:
    """The header's line of what is done, with the three ways to say how much."""
    ranked = [row for row in plan.rows if row["kind"] == "lowrank"]
    rule = "ranks of the plan given" if given else f"ranks by {plan.options['alloc']}"
    ratio = sum(row["rank_ratio"] for row in ranked) / max(len(ranked), 1)
    sizes = (
        f"{kept_share(plan.rows):.3f} of the chosen weights kept, rank/side {ratio:.3f} on average"
    )
    count = f"{len(ranked)} of {len(plan.rows)} layers"
    return header_line("plan", f"{job.settings.method}, {rule}, {count}", sizes)
