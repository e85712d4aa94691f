"""`{"kind": "lowrank_up", "rank": r, "down": "q_proj"}`: a matrix that borrows a neighbour's down.

W = up · down with the `down` of the module of that name beside it, an edit of kind `lowrank` of
the same rank and width: queries, keys and values (gate and up) read one input, and share what maps
it to the inner width. On disk: `NAME.up.weight [out, rank]`, `NAME.up.bias [out]` where the
replaced module had a bias; the neighbour holds the rest.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from compress.checkpoints.edits.base import Fields, Kind, placement
from compress.checkpoints.edits.lowrank import LowRank, check_rank, linear_size
from compress.errors import RequestError


class LowRankUp(nn.Module):
    """`up(down(x))` with the neighbour's `down`, which is run once where both read one tensor.

    The neighbour isn't a part of this module: it is saved, moved and trained where it stands.
    """

    def __init__(self, up: nn.Linear) -> None:
        super().__init__()
        self.up = up
        self._neighbour: list[nn.Module] = []  # in a list, so that it isn't taken for a part

    def borrow(self, neighbour: LowRank) -> None:
        """Use the `down` of a module."""
        self._neighbour = [neighbour]

    @property
    def down(self) -> nn.Module:
        """The neighbour's."""
        return self._neighbour[0].down  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        """The weight of `up`, [out, rank]."""
        return self.up.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias [out], if there is one."""
        return self.up.bias

    @property
    def rank(self) -> int:
        """The inner width."""
        return int(self.weight.shape[1])

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return self.up(self._neighbour[0].inner(inputs))  # type: ignore[operator]

    @property
    def product_shape(self) -> tuple[int, ...]:
        """[out, in]."""
        down: Any = self.down
        return int(self.weight.shape[0]), int(down.weight.shape[1])

    def product(self) -> Tensor:
        """Return up · down in float64, [out, in]."""
        down: Any = self.down.weight
        return self.weight.detach().double() @ down.detach().double()


def make(old: nn.Module, fields: Fields, where: str) -> LowRankUp:
    """Build the thin module that stands for `old`; `link` gives it its neighbour.

    Raises:
        RequestError: `old` is no linear module, or the rank exceeds its smaller side.
    """
    rank = int(fields["rank"])
    wide, tall = linear_size(old, "lowrank_up", where)
    wide, tall = int(fields.get("in", wide)), int(fields.get("out", tall))
    check_rank(rank, wide, tall, where)
    has_bias = getattr(old, "bias", None) is not None
    return LowRankUp(nn.Linear(rank, tall, bias=has_bias, **placement(old)))


def link(model: nn.Module, fields: Fields, where: str) -> None:
    """Give a module its neighbour's `down`.

    Raises:
        RequestError: there is no such neighbour, or it is no edit of kind `lowrank` and that rank.
    """
    module: Any = model.get_submodule(where)
    parent = model.get_submodule(where.rpartition(".")[0])
    neighbour = getattr(parent, str(fields["down"]), None)
    if not isinstance(neighbour, LowRank) or neighbour.rank != int(fields["rank"]):
        raise RequestError(
            f"edit of `{where}`: `{fields['down']}` beside it has no factors of rank "
            f"{fields['rank']} to share",
            "that module needs an edit of kind `lowrank` of the same rank",
        )
    module.borrow(neighbour)
    neighbour.borrowers += 1


KIND = Kind(
    "lowrank_up",
    make,
    required=("rank", "down"),
    optional=("in", "out"),
    names=("down",),
    link=link,
)
