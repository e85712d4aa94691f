"""What a run has planned, kept in OUT.partial, so that a resumed run needn't measure again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.checkpoints.plan import Plan
from compress.checkpoints.workspace import write_json

FILE = "planned.json"


@dataclass(frozen=True)
class Planned:
    """What a run will do.

    Attributes:
        plan: its own plan.
        rivals: the plans of the allocations that it is compared with, by name.
        notes: what was odd, for the receipt.
    """

    plan: Plan
    rivals: Mapping[str, Plan] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def keep(self, directory: Path, basis: Mapping[str, Any]) -> None:
        """Write it, with all that it was made from."""
        content = {
            "basis": basis,
            "plan": self.plan.as_dict(),
            "rivals": {name: plan.as_dict() for name, plan in self.rivals.items()},
            "notes": list(self.notes),
        }
        write_json(directory / FILE, content)


def kept(directory: Path, basis: Mapping[str, Any]) -> Planned | None:
    """What an interrupted run planned; None where there is nothing, or it rests on something else.

    Args:
        directory: where `keep` wrote.
        basis: what a plan made now would be made from, as JSON types.
    """
    try:
        found = json.loads((directory / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if found.get("basis") != json.loads(json.dumps(basis)):
        return None
    rivals = {name: _plan(data) for name, data in found["rivals"].items()}
    return Planned(_plan(found["plan"]), rivals, tuple(found["notes"]))


def _plan(data: Mapping[str, Any]) -> Plan:
    return Plan(data["command"], data["model"]["digest"], data["rows"], data["options"])
