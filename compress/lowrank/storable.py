"""Whether a family's files can hold factors: some store several layers as one tensor."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from compress.checkpoints import edits
from compress.checkpoints.loader import skeleton
from compress.checkpoints.record import config_of, guarded_here
from compress.checkpoints.source import Source
from compress.errors import RequestError
from compress.lowrank.modules import Unit, edits_of, place_of

FUSED = "its family's files hold it fused with other layers"


def unstorable(source: Source, units: Sequence[Unit]) -> dict[str, str]:
    """Return the layers whose factors wouldn't come back from the files, with the reason.

    Every new name is turned into the one that it has on disk and back.

    Args:
        source: the model.
        units: what may become factors.

    Raises:
        RequestError: no edited checkpoint of this family comes back, or an edit is impossible.
    """
    model: Any = skeleton(source)
    edits.apply(model, edits_of((unit, 1) for unit in units))
    names = _Names(model)
    config = config_of(model)
    for guard in guarded_here(model, config) if config else ():
        if not names.come_back(guard):
            raise RequestError(
                f"`{source.name}`: the files of a {type(model).__name__} rename `{guard}`, which "
                "keeps an edited checkpoint from loading as something else",
                "this family can't be edited; `compress alpha-prune` can prune it",
            )
    found, whole = {}, set()
    matrices = [matrix for unit in units for matrix in unit.matrices]
    for matrix in matrices:
        new = [f"{place_of(matrix)}.{part}.weight" for part in ("up", "down")]
        if not all(names.come_back(name) for name in new if name in names.state):
            found[matrix.name] = FUSED
            whole |= {matrix.module} if matrix.stacked else set()
        if matrix.stacked and not names.come_back(f"{place_of(matrix)}.weight", like=new[0]):
            whole.add(matrix.module)  # one that stays has its weight under a new name too
    return found | {m.name: FUSED for m in matrices if m.module in whole}


class _Names:
    """A model's names on disk and in memory."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.state = model.state_dict()
        mapping = get_model_conversion_mapping(model)
        self._renamings = [e for e in mapping if isinstance(e, WeightRenaming)]
        self._converters = [e for e in mapping if isinstance(e, WeightConverter)]
        self._fused = {
            target
            for e in self._converters
            if len(e.target_patterns) > 1
            for target in e.target_patterns
        }

    def come_back(self, name: str, like: str | None = None) -> bool:
        """Whether a tensor saved under its name on disk is loaded under this one again.

        Args:
            name: its run-time name.
            like: another that is there; None is the name itself.
        """
        if any(target in name for target in self._fused):
            return False
        stored = revert_weight_conversion(self.model, {name: self.state[like or name]})
        prefix = self.model.base_model_prefix
        known: Any = self.state if like is None else ChainMap({name: self.state[like]}, self.state)
        back = [
            rename_source_key(key, self._renamings, self._converters, prefix, known)[0]
            for key in stored
        ]
        return back == [name]
