"""What the matrices of a block read: their inputs, as rows of tokens, while the block runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from compress.checkpoints.anatomy import Matrix
from compress.checkpoints.experts_tap import ExpertsTap, runs_by_library
from compress.checkpoints.matrices import is_pointwise
from compress.checkpoints.padding import TokenRows
from compress.checkpoints.weight_uses import (
    Addresses,
    Product,
    WeightCalls,
    WeightUses,
    rows_of,
)

Seen = Callable[[Matrix, Tensor], None]
"""Called with a matrix and its inputs [n, in]."""


class Enough(Exception):
    """Ends a block's run early: all that was wanted has been seen. Caught by the walk."""


class InputTaps:
    """Watches the inputs of chosen matrices of one block while the context is open.

    Matrices are watched where their modules are called, stacked experts where the library runs
    them. Some are multiplied by without either (mamba's `dt_proj`, torch's own attention, llama4's
    experts); those are found on the first batch, and from then on watched at the multiplication.

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
        self._loose: dict[str, list[Matrix]] = {}
        for matrix in matrices:
            if not matrix.stacked:
                self._plain.setdefault(matrix.module, []).append(matrix)
            elif runs_by_library(model, matrix):
                self._stacked.setdefault(matrix.module, []).append(matrix)
            else:
                self._loose.setdefault(matrix.parameter, []).append(matrix)
        self._calls: dict[str, int] = {}
        self._once = False
        self._pending: set[str] = set()
        self._early = False
        self._undo: list[Callable[[], None]] = []
        self._batches = 0
        self._inside: list[str] = []
        self._modes = WeightCalls(self._find, self._called), WeightUses(self._find, self._used)
        self._watched: dict[str, list[Matrix]] = {}
        self._addresses: Addresses | None = None
        self._watching = False

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
        self._watch(False)
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
        names = [*self._plain, *self._stacked, *self._loose]
        self._once = bool(self._calls) and all(self._calls.get(name) == 1 for name in names)
        if self._batches == 0:
            plain = [m for found in self._plain.values() for m in found]
            self._watched = {**{m.parameter: [m] for m in plain}, **self._loose}
        elif self._batches == 1:
            self._watched = {k: v for k, v in self._watched.items() if k in self._loose}
        self._watch(bool(self._watched))
        self._addresses = None  # another stream's weights may lie elsewhere
        self._rows, self._calls, self._pending = rows, {}, set(names)
        self._early = early and self._once
        self._batches += 1

    def _watch(self, on: bool) -> None:
        """Begin or stop watching multiplications; torch keeps the mode for this thread alone."""
        if on != self._watching:
            for mode in self._modes if on else self._modes[::-1]:
                if on:
                    mode.__enter__()
                else:
                    mode.__exit__(None, None, None)
            self._watching = on

    def _tapped(
        self, name: str, matrices: list[Matrix], original: Callable[..., Any]
    ) -> Callable[..., Any]:
        channels_first = is_pointwise(self._model.get_submodule(name))

        def forward(*args: Any, **kwargs: Any) -> Any:
            inputs = args[0] if args else next(iter(kwargs.values()))
            rows = self._rows.of(inputs.mT if channels_first else inputs, name)
            for matrix in matrices:
                self._seen(matrix, rows)
            self._count(name)
            self._inside.append(name)
            try:
                return original(*args, **kwargs)
            finally:
                self._inside.pop()

        return forward

    def _find(self, value: object) -> str | None:
        if self._addresses is None:
            self._addresses = Addresses({n: self._model.get_parameter(n) for n in self._watched})
        return self._addresses.find(value)

    def _called(self, name: str, product: Product, run: Callable[[], Any]) -> Any:
        """Take a multiplication by a weight as the model's code writes it, and carry it out."""
        self._used(name, "", product)
        self._inside.append(self._watched[name][0].module)
        try:
            return run()
        finally:
            self._inside.pop()

    def _used(self, name: str, operation: str, product: Product | None) -> None:
        """Take a multiplication by a weight that its module didn't ask for."""
        matrices = self._watched[name]
        if product is None or matrices[0].module in self._inside:
            return
        reads = rows_of(product, self._model.get_parameter(name), matrices[0])
        for expert, inputs in reads:
            rows = self._rows.at_product(inputs, stacked=len(reads) > 1)
            if rows is None or not len(rows):
                continue
            for matrix in matrices:
                if expert is None or matrix.expert == expert:
                    self._seen(matrix, rows)
        if reads:
            # A plain matrix was taken for one that its module is called for.
            self._loose.setdefault(name, matrices)
            self._plain.pop(matrices[0].module, None)
            self._count(name)

    def _count(self, name: str) -> None:
        self._calls[name] = self._calls.get(name, 0) + 1
        self._pending.discard(name)
        if self._early and not self._pending:
            raise Enough
