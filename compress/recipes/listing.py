"""The shipped recipes, for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.recipes.reading import QUICK, shipped_recipes, with_includes
from compress.reports import formats as fmt
from compress.reports.receipt import SCHEMA


@dataclass(frozen=True)
class Listing:
    """Names of recipes with what each is about."""

    recipes: tuple[dict[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {"schema": SCHEMA, "recipes": list(self.recipes)}

    def render(self) -> str:
        """A table."""
        rows = [[r["name"], r["about"]] for r in self.recipes]
        table = fmt.table(["recipe", "what"], rows, "ll")
        return f"{table}\n\neach has a quick form: compress run NAME --set quick=true"


def shipped_list() -> Listing:
    """Read every shipped recipe's first lines."""
    found = []
    for name, path in shipped_recipes().items():
        tree = with_includes(path, (), path.name).value
        if "steps" in tree:
            about = tree["about"].value if "about" in tree else ""
            found.append({"name": name, "about": about, "quick": QUICK in tree})
    return Listing(tuple(found))
