"""Which rows of a matrix's inputs are tokens: padding is never counted.

Letters: B rows of a batch, T positions, D inputs of a matrix, n tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress.errors import RunError


class Padding(NamedTuple):
    """Which positions of a batch are tokens.

    Attributes:
        mask: bool [B, T].
        kept: int64 [n], positions of the tokens in the flattened mask.
    """

    mask: Tensor
    kept: Tensor

    @staticmethod
    def of(mask: Tensor | None) -> Padding | None:
        """Return the padding that a 2-D attention mask describes, None where nothing is padded."""
        if mask is None or mask.ndim != 2:
            return None
        kept = mask.bool()
        if bool(kept.all()):
            return None
        return Padding(kept, kept.flatten().nonzero().squeeze(1))

    def rows(self, inputs: Tensor) -> Tensor | None:
        """Return the rows [n, D] of `inputs` that are tokens; None if its shape is foreign.

        Accepted are [B, T, D], [B·T, D], [T, B, D] and those with further axes of size one, such
        as the [B, 1, T, D] of latent attention.
        """
        batch, length = self.mask.shape
        lead = [size for size in inputs.shape[:-1] if size != 1]
        own = [size for size in (batch, length) if size != 1]
        if lead != own and lead != [batch * length]:
            if inputs.ndim != 3 or lead != own[::-1]:
                return None
            inputs = inputs.transpose(0, 1)
        return inputs.reshape(-1, inputs.shape[-1]).index_select(0, self.kept)


class TokenRows:
    """Turns the inputs of a block's matrices into rows of tokens.

    Matrices that read the same tensor get the same rows object, so that a method can share
    statistics between them.

    Args:
        own: the padding of the block's own sequence.
        side: the padding of a second sequence that the block reads (the encoder's).
        side_inputs: the tensors of the block's call that belong to that second sequence.
    """

    def __init__(
        self, own: Padding | None, side: Padding | None = None, side_inputs: Sequence[Tensor] = ()
    ) -> None:
        self.own = own
        self._side = side
        self._side_inputs = {id(tensor) for tensor in side_inputs}
        self._recent: list[tuple[Tensor, Tensor]] = []

    def of(self, inputs: Tensor, name: str) -> Tensor:
        """Return the token rows [n, D] of `inputs` [..., D].

        Raises:
            RunError: the batch is padded and the shape doesn't tell which rows are tokens.
        """
        for known, rows in self._recent:
            if known is inputs:
                return rows
        rows = self._rows(inputs, name)
        # Two suffice: what attention and MLP read may be one tensor, with one other between.
        self._recent = [*self._recent[-1:], (inputs, rows)]
        return rows

    def at_product(self, inputs: Tensor, *, stacked: bool) -> Tensor | None:
        """Return the token rows [n, D] of what a weight is multiplied by without its module.

        None where the batch is padded and rows can't be told apart: by then sequence and batch may
        have been folded into one axis in either order.

        Args:
            inputs: [..., D].
            stacked: they are one expert's share of the rows of all experts, in the batch's order;
                zero where another expert was chosen.
        """
        if not stacked and self.own is None:
            return inputs.reshape(-1, inputs.shape[-1])
        if self.own is not None:
            known = stacked or tuple(inputs.shape[:-1]) == tuple(self.own.mask.shape)
            found = self.own.rows(inputs) if known else None
            if found is None:
                return None
            inputs = found
        return inputs[inputs.any(dim=-1)]

    def _rows(self, inputs: Tensor, name: str) -> Tensor:
        if id(inputs) in self._side_inputs:
            order = [self._side, self.own]
        else:
            order = [self.own, self._side]
        if order[0] is None:
            return inputs.reshape(-1, inputs.shape[-1])
        for padding in order:
            rows = None if padding is None else padding.rows(inputs)
            if rows is not None:
                return rows
        raise RunError(
            f"`{name}` reads a tensor {list(inputs.shape)}, in which the padding of a batch "
            f"{list(order[0].mask.shape)} can't be found",
            "use samples of equal length, without padding",
        )


class BatchPadding:
    """The padding of one batch, for the blocks of an encoder, a decoder, or an only stack.

    Args:
        batch: keyword arguments of the model's forward.
        model: the model.
        device: where the block's inputs are.
    """

    def __init__(
        self, batch: Mapping[str, Any], model: nn.Module, device: str | torch.device
    ) -> None:
        self._first = Padding.of(_mask(batch, "attention_mask", device))
        self._second = Padding.of(_mask(batch, "decoder_attention_mask", device))
        self._decoder = _decoder_prefix(model)

    def own(self, block: str) -> Padding | None:
        """Return the padding of the sequence that runs through a block."""
        return self._second if self._in_decoder(block) else self._first

    def rows(self, block: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TokenRows:
        """Return how the inputs of a block's matrices become rows, given the block's call."""
        if not self._in_decoder(block):
            return TokenRows(self._first)
        side = [*args[1:], *(value for key, value in kwargs.items() if key != "hidden_states")]
        tensors = [value for value in side if isinstance(value, Tensor)]
        return TokenRows(self._second, self._first, tensors)

    def _in_decoder(self, block: str) -> bool:
        return self._decoder is not None and block.startswith(self._decoder)


def _mask(batch: Mapping[str, Any], key: str, device: str | torch.device) -> Tensor | None:
    mask = batch.get(key)
    return mask.to(device) if isinstance(mask, Tensor) else None


def _decoder_prefix(model: nn.Module) -> str | None:
    """Return what the names of the decoder's blocks begin with; None without an encoder."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    decoder = model.get_decoder()  # type: ignore[operator]
    return next((f"{name}." for name, part in model.named_modules() if part is decoder), None)
