"""Which parameters a run trains, where it isn't all of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from compress.errors import RequestError, near_names


@dataclass(frozen=True)
class Trained:
    """What a run with `train_only` trains.

    Attributes:
        parameters: how many numbers are trained, and of how many.
        of: all of the model's.
        tensors: how many tensors are trained.
    """

    parameters: int
    of: int
    tensors: int

    def as_receipt(self) -> dict[str, int]:
        """The receipt's entry."""
        return {"parameters": self.parameters, "of": self.of, "tensors": self.tensors}


def train_only(model: nn.Module, globs: Sequence[str]) -> Trained:
    """Freeze every parameter but those that a glob names, by their own or a module's name.

    `model.layers.3.mlp` stands for all that lies in that module, `*.layers.3.*_proj.weight` for
    some of it; a parameter that two modules share is trained if one of its names is meant. The
    optimizer keeps no state for what is frozen, and its gradient is never computed.

    Args:
        model: changed in place: `requires_grad` of its parameters.
        globs: shell patterns; `*` goes over dots.

    Raises:
        RequestError: a glob that names nothing, or nothing that a gradient can reach.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    meant: set[str] = set()
    for glob in globs:
        found = [n for n in named if fnmatch.fnmatchcase(n, glob) or _inside(n, glob)]
        if not found:
            modules = [name for name, _ in model.named_modules() if name]
            raise RequestError(
                f"`--train-only {glob}` names no parameter of this model",
                near_names(glob, modules),
            )
        meant.update(found)
    chosen = {id(named[name]) for name in meant if named[name].is_floating_point()}
    if not chosen:
        raise RequestError(
            f"`--train-only {','.join(globs)}`: nothing that it names can be trained"
        )
    for parameter in named.values():
        parameter.requires_grad_(id(parameter) in chosen)
    own: Any = [p for p in model.parameters() if p.requires_grad]
    return Trained(
        sum(p.numel() for p in own), sum(p.numel() for p in model.parameters()), len(own)
    )


def _inside(name: str, glob: str) -> bool:
    """Whether a glob names a module that holds the parameter."""
    return fnmatch.fnmatchcase(name, f"{glob}.*")
