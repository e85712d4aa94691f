"""`{"kind": "norm", "width": n}`: a normalisation over fewer features.

On disk: the same names as before, each [width]; running statistics of a batch norm included. Layer
norms, RMS norms of any model and batch norms: a norm is a module whose own tensors are one-
dimensional, all of one length.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from compress.checkpoints.edits.base import Fields, Kind, refuse
from compress.errors import RequestError


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Build a norm of `width` features: weights 1, biases 0, running statistics at their start.

    Raises:
        RequestError: `old` is no norm, or isn't that wide.
    """
    if isinstance(old, nn.GroupNorm):
        refuse("norm", old, where, "layer, RMS and batch norms")
    before, width = _width(old, where), int(fields["width"])
    if width > before:
        raise RequestError(
            f"edit of `{where}`: width {width} exceeds the norm's {before} features",
            f"give a width from 1 to {before}",
        )
    new = copy.deepcopy(old)
    for name, parameter in old.named_parameters(recurse=False):
        value = _start(parameter, name, width)
        setattr(new, name, nn.Parameter(value, requires_grad=parameter.requires_grad))
    for name, buffer in old.named_buffers(recurse=False):
        if buffer.shape == (before,):
            setattr(new, name, _start(buffer, name, width))
    for name in ("num_features", "hidden_size", "dim", "size"):
        if getattr(new, name, None) == before:
            setattr(new, name, width)
    if getattr(new, "normalized_shape", None) == (before,):
        setattr(new, "normalized_shape", (width,))  # noqa: B010
    return new


def _start(like: Tensor, name: str, width: int) -> Tensor:
    """Return [width] in the dtype of `like`: zeros for shifts, ones for scales."""
    fill = torch.zeros if "bias" in name or "mean" in name else torch.ones
    return fill(width, dtype=like.dtype, device=like.device)


def _width(old: nn.Module, where: str) -> int:
    shapes = {tuple(p.shape) for p in old.parameters()}
    shapes |= {tuple(b.shape) for b in old.buffers() if b.dim()}
    shape = tuple(getattr(old, "normalized_shape", ())) or (shapes.pop() if shapes else ())
    plain = not any(True for child in old.children() for _ in child.parameters())
    if len(shape) != 1 or (shapes and shapes != {shape}) or not plain:
        refuse("norm", old, where, "layer, RMS and batch norms, which hold one number a feature")
    return int(shape[0])


KIND = Kind("norm", make, required=("width",))
