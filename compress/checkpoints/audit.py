"""Proof that no matrix was missed: what a forward multiplies by, and what a walk changed.

Both look at weights by their place in memory or by their values, not at what the anatomy says of
them, so they find what the anatomy overlooked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from compress.checkpoints.anatomy import Anatomy, matrix_view
from compress.checkpoints.weight_uses import Addresses, Product, WeightUses


def weight_uses(
    model: nn.Module, batches: Sequence[Mapping[str, Any]]
) -> dict[str, frozenset[str]]:
    """Return the operations that touch each weight while the model runs.

    Args:
        model: a model in memory, in eval mode.
        batches: keyword arguments of its forward.

    Returns:
        Full parameter name -> names of operations (`linear`, `addmm`, `bmm`, `conv1d`), of every
        parameter with two or more dimensions that took part. In inference mode they are seen as
        the model's code calls them. Of a weight with several names the first is given.
    """
    wide = {name: p for name, p in model.named_parameters() if p.ndim >= 2}
    uses: dict[str, set[str]] = {}

    def used(name: str, operation: str, product: Product | None) -> None:
        uses.setdefault(name, set()).add(operation)

    with torch.inference_mode(), WeightUses(Addresses(wide).find, used):
        for batch in batches:
            model(**batch)
    return {name: frozenset(operations) for name, operations in uses.items()}


def unlisted(anatomy: Anatomy, used: Iterable[str]) -> list[str]:
    """Return the used weights that are neither a matrix of a block nor skipped with a reason.

    Outside blocks lie embeddings, heads and glue, which no method edits: those that are a part of
    no block are not returned.

    Args:
        anatomy: of the model.
        used: full parameter names.
    """
    known = {matrix.parameter for matrix in anatomy.matrices}
    known |= {name for block in anatomy.blocks for name, _ in block.skipped}
    inside = tuple(f"{block.name}." for block in anatomy.blocks)
    return [name for name in used if name.startswith(inside) and name not in known]


def unexplained(
    before: nn.Module,
    after: nn.Module,
    anatomy: Anatomy,
    untouched: Iterable[tuple[str, str]],
) -> list[str]:
    """Return the wide weights of blocks that a walk neither changed nor listed with a reason.

    Also returned is what it listed as untouched, or skipped, but changed.

    Args:
        before, after: the model as it was and as the walk left it, both in memory.
        anatomy: of the model.
        untouched: the walk's list of (matrix or parameter, reason).
    """
    old, new = (dict(m.named_parameters(remove_duplicate=False)) for m in (before, after))
    listed = {name for name, reason in untouched if reason}
    found = []
    with torch.no_grad():
        for matrix in anatomy.matrices:
            one, two = (matrix_view(state[matrix.parameter], matrix) for state in (old, new))
            if torch.equal(one, two) != (matrix.name in listed):
                found.append(matrix.name)
    shared = {id(new[matrix.parameter]) for matrix in anatomy.matrices}  # edited by another name
    for block in anatomy.blocks:
        for name, _ in block.skipped:
            same = torch.equal(old[name], new[name])
            if name not in listed or not (same or id(new[name]) in shared):
                found.append(name)
    return found
