"""The inputs of stacked experts, each expert's routed rows apart.

transformers runs stacked experts by a function chosen from `ALL_EXPERTS_FUNCTIONS`. One is
registered here that reports what it is given and leaves the work to `grouped_mm`, the library's
default, so its outputs are the same bits. Both projections' inputs are taken where that function
makes them: nothing is computed twice.

Letters: N tokens (padding included), K experts a token, S = N·K pairs, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from compress.checkpoints.anatomy import Matrix
from compress.checkpoints.padding import Padding
from compress.errors import RequestError

IMPLEMENTATION = "compress_tapped"
_TAP = "_compress_tap"
_FIRST, _SECOND = {"gate_up_proj", "up_proj"}, {"down_proj"}


def runs_by_library(model: nn.Module, matrix: Matrix) -> bool:
    """Return whether the matrix's experts are run by a function that the library lets us choose."""
    experts, leaf = model.get_submodule(matrix.module), matrix.parameter.rpartition(".")[2]
    return hasattr(experts, "has_gate") and leaf in _FIRST | _SECOND


def check_observable(model: PreTrainedModel, matrices: Sequence[Matrix]) -> None:
    """Select the reporting function for a model whose stacked experts are to be observed.

    Experts that their module runs by code of its own are observed at their multiplications.

    Raises:
        RequestError: the model doesn't let the function be chosen.
    """
    stacked = [m for m in matrices if m.stacked and runs_by_library(model, m)]
    if stacked:
        try:
            model.set_experts_implementation(IMPLEMENTATION)
        except (ValueError, AttributeError, RuntimeError) as error:
            raise RequestError(
                f"the inputs of `{stacked[0].name}` can't be observed: {error}",
                "leave its experts out, or use a method that needs no calibration data",
            ) from error


class ExpertsTap:
    """Reports what each expert of one module reads, while open.

    Args:
        module: the module that holds the stacked weights.
        matrices: its matrices to report on.
        seen: called with a matrix and its routed rows [n, in]; never for an expert without tokens.
            Matrices of one expert that read the same rows get the same tensor.
        padding: gives the current batch's padding.
        done: called once both projections of a batch have been reported.
    """

    def __init__(
        self,
        module: nn.Module,
        matrices: Sequence[Matrix],
        seen: Callable[[Matrix, Tensor], None],
        padding: Callable[[], Padding | None],
        done: Callable[[], None],
    ) -> None:
        self._module: Any = module
        self._matrices: dict[tuple[int, bool], list[Matrix]] = {}
        for matrix in matrices:
            second = matrix.parameter.rpartition(".")[2] in _SECOND
            self._matrices.setdefault((matrix.expert or 0, second), []).append(matrix)
        self._wants_second = any(second for _, second in self._matrices)
        self._seen = seen
        self._padding = padding
        self._done = done
        self._kept: Tensor | None = None
        self._counts: list[int] = []
        self._undo: Callable[[], None] = lambda: None

    def open(self) -> None:
        """Begin to report."""
        self._module.__dict__[_TAP] = self
        if self._module.has_gate:
            owner, name = self._module, "_apply_gate"
        elif isinstance(self._module.act_fn, nn.Module):
            owner, name = self._module.act_fn, "forward"
        else:
            owner, name = self._module, "act_fn"
        before = owner.__dict__.get(name)
        original = getattr(owner, name)

        def activated(inputs: Tensor) -> Tensor:
            output = original(inputs)
            self._second(output)
            return output

        setattr(owner, name, activated)

        def undo() -> None:
            owner.__dict__.pop(name, None)
            if before is not None:
                setattr(owner, name, before)

        self._undo = undo

    def close(self) -> None:
        """Report no more."""
        self._module.__dict__.pop(_TAP, None)
        self._undo()

    def first(self, hidden: Tensor, top_k_index: Tensor) -> None:
        """Report the rows of the first projections.

        Args:
            hidden: [N, in].
            top_k_index: int64 [N, K], the experts of each token.
        """
        # The same call as in grouped_mm_experts_forward, so the order of its rows is known.
        experts, order = torch.sort(top_k_index.reshape(-1))
        tokens = order // top_k_index.shape[-1]
        padding = self._padding()
        self._kept = None
        if padding is not None:
            self._kept = padding.mask.flatten()[tokens].nonzero().squeeze(1)
            experts, tokens = experts[self._kept], tokens[self._kept]
        # The sizes of the pieces must be known on the host: one sync a batch.
        self._counts = torch.bincount(experts, minlength=self._module.num_experts).tolist()
        self._report(hidden[tokens], second=False)
        if not self._wants_second:
            self._done()

    def _second(self, rows: Tensor) -> None:
        """Report the rows [S, in] of the second projections, in the order of the experts."""
        if self._wants_second:
            self._report(rows if self._kept is None else rows[self._kept], second=True)
            self._done()

    def _report(self, rows: Tensor, *, second: bool) -> None:
        for expert, piece in enumerate(rows.split(self._counts)):
            for matrix in self._matrices.get((expert, second), ()) if len(piece) else ():
                self._seen(matrix, piece)


def _tapped_experts(
    self: Any,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    tap: ExpertsTap | None = self.__dict__.get(_TAP)
    if tap is not None:
        tap.first(hidden_states, top_k_index)
    return grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _tapped_experts)
