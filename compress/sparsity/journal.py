"""What a pruner found in each block, kept across an interruption and told in few lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.checkpoints.workspace import writing


class Journal:
    """Notes of finished blocks; a block pruned twice counts once.

    Args:
        file: where they are kept, a line of JSON for each block; None keeps them in memory only.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._blocks: dict[str, dict[str, Any]] = {}

    def add(self, block: str, found: Mapping[str, Any]) -> None:
        """Keep what was found in a block; nothing where all its values are empty.

        Args:
            block: its name.
            found: "notes" (lines), "permuted" (matrix -> gain), "in_order" (matrix -> reason),
                "refit" (errors before and after), "trimmed" (matrix -> "rows", the counts, and
                what trim.Trimmed says of them).
        """
        entry = {"block": block, **{key: value for key, value in found.items() if value}}
        if len(entry) == 1:
            return
        self._blocks[block] = entry
        if self._file is not None:
            with writing(self._file), self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def lines(self) -> tuple[str, ...]:
        """All of it, for the receipt: notes as they are, the rest summed up."""
        entries = {**self._written(), **self._blocks}.values()
        notes = [note for entry in entries for note in entry.get("notes", ())]
        every = list(entries)
        return (*notes, *_trimmed(every), *_permuted(every), *_refitted(every))

    def rows(self) -> dict[str, list[int]]:
        """The counts of the rows that TRIM chose, by matrix."""
        entries = {**self._written(), **self._blocks}.values()
        return {
            name: found["rows"]
            for entry in entries
            for name, found in entry.get("trimmed", {}).items()
        }

    def _written(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        if self._file is not None and self._file.is_file():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                if line.endswith("}"):  # a kill may leave half a line, of a block not yet written
                    entry = json.loads(line)
                    found[entry["block"]] = entry
        return found


def _trimmed(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the outputs keep by even and by TRIM's counts."""
    found = [t for entry in entries for t in entry.get("trimmed", {}).values() if "kept" in t]
    if not found:
        return []
    even, kept = (sum(t[key] for t in found) / len(found) for key in ("even", "kept"))
    stay = sum(t["rate"] == 0 for t in found)
    against = sum(t["rate"] < 0 for t in found)
    more = f"; {stay} stay even, which no rate bettered" if stay else ""
    more += f"; {against} with the rate turned round" if against else ""
    return [
        f"trim: cosine of the outputs before and after pruning, with even rows {even:.4f}, with "
        f"its own {kept:.4f}, on average over {len(found)} matrices{more}"
    ]


def _permuted(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many matrices of each name were permuted and what it gained; the others by reason."""
    gains: dict[str, list[float]] = {}
    reasons: Counter[tuple[str, str]] = Counter()
    for entry in entries:
        for name, gain in entry.get("permuted", {}).items():
            gains.setdefault(_leaf(name), []).append(gain)
        for name, reason in entry.get("in_order", {}).items():
            reasons[reason, _leaf(name)] += 1
    lines = []
    if gains:
        told = ", ".join(
            f"{len(found)} {leaf} (+{100 * sum(found) / len(found):.2g} %)"
            for leaf, found in gains.items()
        )
        lines.append(
            f"channel permutation: {told}, the score that the pattern keeps by it; the rows of "
            "what feeds them are in the same order, so the model's function is none other"
        )
    for reason in dict.fromkeys(reason for reason, _ in reasons):
        those = ", ".join(f"{n} {leaf}" for (why, leaf), n in reasons.items() if why == reason)
        lines.append(f"channels in their old order: {those}: {reason}")
    return lines


def _refitted(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The errors of the blocks before and after their refit."""
    pairs = [entry["refit"] for entry in entries if "refit" in entry]
    if not pairs:
        return []
    before, after = (sum(pair[k] for pair in pairs) / len(pairs) for k in (0, 1))
    kept = sum(pair[1] >= pair[0] for pair in pairs)
    each = ", ".join(f"{a:.3g} to {b:.3g}" for a, b in pairs)
    stays = f"; {kept} of {len(pairs)} keep their values, which no step bettered" if kept else ""
    return [
        "refit block: squared error of the blocks' outputs on held-out calibration, relative: "
        f"{before:.3g} to {after:.3g} on average (by block: {each}){stays}"
    ]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
