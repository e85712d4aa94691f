"""What `alpha_prune` hands back: the plan, the receipt, the place, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoints.plan import Plan
from compress.evaluation.measures import Measures
from compress.reports.receipt import Receipt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PruneResult:
    """What `alpha_prune` did.

    Attributes:
        plan: the counts of zeros, a row per matrix.
        receipt: what was measured; None after a dry run.
        output: the directory written; None after a dry run or when none was asked for.
        model: the pruned model in memory, where no output was asked for.
        beside: of a dry run, each block's share beside those of other allocations.
        before, after: the scores with the outcome of every window and item, for comparisons.
    """

    plan: Plan
    receipt: Receipt | None = None
    output: Path | None = None
    model: PreTrainedModel | None = None
    before: Measures = field(default_factory=Measures)
    after: Measures = field(default_factory=Measures)
    beside: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The receipt, or the plan after a dry run, as JSON types."""
        if self.receipt is not None:
            return self.receipt.as_dict()
        return {**self.plan.as_dict(), **({"allocation": self.beside} if self.beside else {})}

    def render(self) -> str:
        """The receipt, or the plan after a dry run, as a table for people."""
        from compress.reports.allocation import allocation_text
        from compress.reports.tables import plan_table, receipt_table

        if self.receipt is None:
            shown = [plan_table(self.plan.rows), allocation_text(self.beside)]
        else:
            found = self.receipt.extra.get("allocation", {})
            shown = [receipt_table(self.receipt, output=self.output), allocation_text(found)]
        return "\n\n".join(part for part in shown if part)
