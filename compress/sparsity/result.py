"""What `alpha_prune` hands back: the plan, the receipt, the place, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compress.jobs import Made

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class PruneResult(Made):
    """What `alpha_prune` did. The plan has a row per matrix: its count of zeros.

    Attributes:
        beside: of a dry run, each block's share beside those of other allocations.
    """

    beside: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The receipt, or the plan after a dry run, as JSON types."""
        beside = self.receipt is None and self.beside
        return {**super().as_dict(), **({"allocation": self.beside} if beside else {})}

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
