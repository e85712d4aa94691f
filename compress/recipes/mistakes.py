"""All mistakes of a recipe, told together, each with its place."""

from __future__ import annotations

from compress.errors import RequestError
from compress.recipes.marks import Mark

_MOST = 20


class Mistakes:
    """Collects what is wrong; the same mistake met in many cells counts once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], str] = {}

    def add(self, mark: Mark, text: str, hint: str = "") -> None:
        """Take note of a mistake at a place."""
        self._found.setdefault((str(mark), text), hint)

    def __bool__(self) -> bool:
        return bool(self._found)

    def refuse(self) -> None:
        """Raise all of them as one error.

        Raises:
            RequestError: there is a mistake. One is told with its whole hint, several each with
                the nearest name.
        """
        if not self._found:
            return
        if len(self._found) == 1:
            ((place, text), hint), *_ = self._found.items()
            raise RequestError(f"{place}: {text}", hint or None)
        told = []
        for (place, text), hint in list(self._found.items())[:_MOST]:
            near = hint.partition("? ")[0] + "?" if hint.startswith("did you mean") else ""
            told.append(f"{place}: {text}" + (f" ({near})" if near else ""))
        more = len(self._found) - len(told)
        told += [f"and {more} more"] if more else []
        raise RequestError("; ".join(told), f"{len(self._found)} mistakes; nothing was started")
