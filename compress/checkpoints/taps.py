"""What the matrices of a block read: their inputs, as rows of tokens, while the block runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from compress.checkpoints.anatomy import Matrix
from compress.checkpoints.experts_tap import ExpertsTap, is_stacked
from compress.checkpoints.padding import TokenRows

Seen = Callable[[Matrix, Tensor], None]
"""Called with a matrix and its inputs [n, in]."""


class Enough(Exception):
    """Ends a block's run early: all that was wanted has been seen. Caught by the walk."""


class InputTaps:
    """Watches the inputs of chosen matrices of one block while the context is open.

    Args:
        model: the model.
        matrices: what to watch.
        seen: called with each matrix and its rows, once per call of its module.
    """

    def __init__(self, model: nn.Module, matrices: Sequence[Matrix], seen: Seen) -> None:
        self._model = model
        self._seen = seen
        self._rows = TokenRows(None)
        self._plain: dict[str, list[Matrix]] = {}
        self._stacked: dict[str, list[Matrix]] = {}
        for matrix in matrices:
            group = self._stacked if is_stacked(model, matrix) else self._plain
            group.setdefault(matrix.module, []).append(matrix)
        self._calls: dict[str, int] = {}
        self._once = False
        self._pending: set[str] = set()
        self._early = False
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> InputTaps:
        for name, matrices in self._plain.items():
            module = self._model.get_submodule(name)
            module.forward = self._tapped(name, matrices, module.forward)
            self._undo.append(lambda module=module: module.__dict__.pop("forward", None))  # type: ignore[misc]
        for name, matrices in self._stacked.items():
            tap = ExpertsTap(
                self._model.get_submodule(name),
                matrices,
                self._seen,
                padding=lambda: self._rows.own,
                done=lambda name=name: self._count(name),  # type: ignore[misc]
            )
            tap.open()
            self._undo.append(tap.close)
        return self

    def __exit__(self, *exception: object) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def begin(self, rows: TokenRows, early: bool) -> None:
        """Announce a batch.

        Args:
            rows: how its inputs become rows.
            early: raise `Enough` once all has been seen. This begins with the second batch: only
                a full run shows that no module is called twice.
        """
        names = [*self._plain, *self._stacked]
        self._once = bool(self._calls) and all(self._calls.get(name) == 1 for name in names)
        self._rows, self._calls, self._pending = rows, {}, set(names)
        self._early = early and self._once

    def _tapped(
        self, name: str, matrices: list[Matrix], original: Callable[..., Any]
    ) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            rows = self._rows.of(args[0] if args else next(iter(kwargs.values())), name)
            for matrix in matrices:
                self._seen(matrix, rows)
            self._count(name)
            return original(*args, **kwargs)

        return forward

    def _count(self, name: str) -> None:
        self._calls[name] = self._calls.get(name, 0) + 1
        self._pending.discard(name)
        if self._early and not self._pending:
            raise Enough
