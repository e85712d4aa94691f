"""The cells of a study, and the groups in which they are worked on.

A cell is one pruned model: (model, calibration set, seed, way to prune). All cells of one model,
calibration set and seed are one group, pruned in one walk. Groups are the unit of shards, of the
budget and of what a killed study repeats.

Groups are ordered by seed first: after each round every calibration set has had one more draw, so a
study that ends early is still balanced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.study.settings import Setting, StudySettings

BAD_ENDS = ("ellipses", "random")
BAD_SEEDS = 2  # draws of the bad ends: enough to see them at the bad end
MAGNITUDE, REPEAT, BAD_END = "magnitude", "repeat", "bad-end"


@dataclass(frozen=True)
class Cell:
    """One pruned model.

    Attributes:
        model: as the user named it.
        calib: data spec of its calibration set.
        seed: of the draw.
        setting: how it is pruned.
        control: why it is there, if not as an answer: MAGNITUDE, REPEAT, BAD_END or "".
    """

    model: str
    calib: str
    seed: int
    setting: Setting
    control: str = ""

    @property
    def name(self) -> str:
        """What progress and errors call it."""
        return f"{self.calib}, {self.setting.label}, seed {self.seed}"


@dataclass(frozen=True)
class Group:
    """The cells of one model, calibration set and seed.

    Attributes:
        model, calib, seed: what they share.
        cells: at least one.
    """

    model: str
    calib: str
    seed: int
    cells: tuple[Cell, ...]

    @property
    def repeated(self) -> bool:
        """Whether it only repeats a cell, and so must take nothing over."""
        return all(cell.control == REPEAT for cell in self.cells)


def groups_of(
    models: Sequence[str], calib: Sequence[str], reference: str, settings: StudySettings
) -> list[Group]:
    """All groups of a study in the order of work, controls included.

    Args:
        models: as the user named them.
        calib: data specs of the calibration sets, formats spelt out.
        reference: the one that all are compared with.
        settings: the ways to prune, the seeds, whether there are controls.
    """
    found = list(_rounds(models, calib, settings))
    if settings.controls == "full":
        first = settings.draws[0]
        twin = Cell(models[0], reference, first, settings.settings[0], REPEAT)
        after = max(i for i, g in enumerate(found) if g.seed == first)
        found.insert(after + 1, Group(models[0], reference, first, (twin,)))
    return found


def _rounds(
    models: Sequence[str], calib: Sequence[str], settings: StudySettings
) -> Iterator[Group]:
    controls = settings.controls == "full"
    for number, seed in enumerate(settings.draws):
        bad = [s for s in BAD_ENDS if controls and number < BAD_SEEDS and s not in calib]
        for model in models:
            for spec in (*calib, *bad):
                kind = BAD_END if spec in bad else ""
                cells = [Cell(model, spec, seed, each, kind) for each in settings.settings]
                if controls and number == 0 and kind == "":
                    cells += _magnitude(model, spec, seed, settings)
                yield Group(model, spec, seed, tuple(cells))


def _magnitude(model: str, spec: str, seed: int, settings: StudySettings) -> list[Cell]:
    """The cell that must not depend on the data, where none is there already."""
    if "magnitude" in settings.methods:
        return []
    first = settings.settings[0]
    own = Setting("magnitude", first.allocation, first.sparsity, first.pattern)
    return [Cell(model, spec, seed, own, MAGNITUDE)]


def of_shard(groups: Sequence[Group], shard: tuple[int, int] | None) -> list[Group]:
    """The groups of the i-th of n shards: every n-th, so that each shard is balanced itself."""
    return list(groups if shard is None else groups[shard[0] - 1 :: shard[1]])


def content_key(cell: Cell, content: Mapping[str, Any]) -> str:
    """What a cell's result depends on, as a hash: equal keys, equal results.

    Args:
        cell: the cell.
        content: digests of model and calibration set, options of pruning and scoring, versions.
    """
    own = {"setting": cell.setting.as_dict(), "repeat": cell.control == REPEAT, **content}
    text = json.dumps(own, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
