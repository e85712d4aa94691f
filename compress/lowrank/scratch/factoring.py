"""Which layers of a model become factors, of which rank, and the plan that tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from compress.checkpoints import edits
from compress.checkpoints.anatomy import Anatomy, Matrix, read_anatomy
from compress.checkpoints.plan import Plan
from compress.lowrank.modules import choose, place_of
from compress.lowrank.scratch.factors import factor_model, low_rank_layers, start_weights
from compress.lowrank.scratch.schedules import scheduled_ranks
from compress.lowrank.scratch.settings import COMMAND, ScratchSettings
from compress.training.initial import Start


class Factored(NamedTuple):
    """What became of a model's layers.

    Attributes:
        plan: a row a layer; None where none is changed.
        dense: parameters of the model with dense layers.
        parameters: of the model that is trained.
        chosen: weights of the layers that were chosen, dense.
        kept: weights of the factors in their place.
        notes: plain sentences.
    """

    plan: Plan | None
    dense: int
    parameters: int
    chosen: int
    kept: int
    notes: tuple[str, ...]

    def as_receipt(self, settings: ScratchSettings) -> dict[str, Any]:
        """The receipt's entry."""
        entry: dict[str, Any] = {"parameters_dense": self.dense, "parameters": self.parameters}
        if self.plan is None:
            return entry
        return {
            **entry,
            "layers": len(self.plan.rows),
            "rank_ratio": settings.rank_ratio,
            "ranks": sum(row["rank"] for row in self.plan.rows),
            "kept": self.kept / self.chosen,
            "schedule": settings.rank_schedule,
            "init": settings.factor_init,
            "factor_decay": settings.factor_decay,
        }


def factor(model: PreTrainedModel, start: Start, settings: ScratchSettings) -> Factored:
    """Draw a model's start and put factors in the place of the chosen layers.

    A model whose layers are factors already is trained as it is; one with trained dense layers
    starts from their factors.

    Args:
        model: as transformers starts or loads it; changed in place.
        start: where it comes from.
        settings: of the run, `start` among them.

    Raises:
        RequestError: a pattern matches nothing, a schedule doesn't suit the depth.
    """
    if start.fresh and settings.start == "reset":
        start_weights(model, settings.seed)
    dense = count(model)
    if low_rank_layers(model):
        note = "its layers are factors already, and are trained as they are"
        return Factored(None, dense, dense, 0, 0, (note,))
    if settings.dense or settings.rank_ratio == 1:
        return Factored(None, dense, dense, 0, 0, ())
    anatomy = read_anatomy(model)
    chosen = choose(model, anatomy, settings.include, settings.exclude)
    stacks = {m.module for m in chosen.matrices if m.stacked}
    edits.apply(model, {name: {"kind": "expert_list"} for name in stacks})
    rows = [
        row
        for number in range(len(anatomy.stacks))
        for row in _rows_of_stack(anatomy, number, chosen.matrices, settings)
    ]
    factor_model(
        model, {row["module"]: row["rank"] for row in rows}, settings.factor_init, settings.seed
    )
    plan = Plan(COMMAND, start.digest(), rows, settings.as_dict())
    whole = sum(row["shape"][0] * row["shape"][1] for row in rows)
    kept = sum(row["rank"] * sum(row["shape"]) for row in rows)
    return Factored(plan, dense, count(model), whole, kept, tuple(_notes(rows)))


def _rows_of_stack(
    anatomy: Anatomy, number: int, matrices: Sequence[Matrix], settings: ScratchSettings
) -> list[dict[str, Any]]:
    """Return the plan's rows of one stack: encoder and decoder have depths of their own."""
    index = {block.name: block.index for block in anatomy.stacks[number]}
    own = [matrix for matrix in matrices if matrix.block in index]
    if not own:
        return []
    ranks = scheduled_ranks(
        [min(matrix.shape) for matrix in own],
        [index[matrix.block] for matrix in own],
        settings.rank_ratio,
        settings.rank_schedule,
        settings.slope,
        len(anatomy.stacks[number]),
    )
    return [_row(matrix, rank) for matrix, rank in zip(own, ranks)]


def _row(matrix: Matrix, rank: int) -> dict[str, Any]:
    out, into = matrix.shape
    return {
        "module": place_of(matrix),
        "kind": "lowrank",
        "rank": rank,
        "block": matrix.block,
        "shape": [out, into],
        "rank_ratio": rank / min(out, into),
        "kept": rank * (out + into) / (out * into),
    }


def _notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    idle = [row for row in rows if row["kept"] >= 1]
    if not idle:
        return []
    return [
        f"{len(idle)} of {len(rows)} layers hold as many weights as dense ones or more, such as "
        f"`{idle[0]['module']}` with rank {idle[0]['rank']}: below "
        f"{idle[0]['shape'][0] * idle[0]['shape'][1] / sum(idle[0]['shape']):.0f} they save some"
    ]


def count(model: PreTrainedModel) -> int:
    """Count a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
