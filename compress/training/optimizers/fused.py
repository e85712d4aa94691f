"""SPAM without a compiler: a pass that clips into a buffer, then torch's fused Adam kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compress.training.optimizers import kernels

_DEVICES = ("cpu", "cuda")


def fused_fits(*lists: Sequence[Tensor]) -> bool:
    """Whether the fused kernel takes these lists: float32, on a device it knows.

    In float64 its results are good to 1e-6 only.
    """
    kinds = {tensor.dtype for tensors in lists for tensor in tensors}
    return kinds == {torch.float32} and lists[0][0].device.type in _DEVICES


def spam_fused(
    lists: Sequence[Sequence[Tensor]],
    row: Sequence[float],
    scalars: Sequence[Tensor],
    step: float,
) -> None:
    """One step of SPAM on flat tensors, in place, as `kernels.spam` does it.

    The one difference: a tensor with any gradient that isn't finite is left alone as a whole, since
    that is what the fused kernel can do.

    Args:
        lists: weights, gradients, first and second moments.
        row: the scalars on the host, by the columns of `kernels`.
        scalars: those of each tensor on its device.
        step: of the bias corrections.
    """
    beta1, beta2 = 1.0 - row[kernels.W1], 1.0 - row[kernels.W2]
    root = math.sqrt(1.0 - beta2**step)
    # The kernel divides by its own corrections, and adds eps to the corrected root:
    # RATE m / (ROOT sqrt(v) + EPS) = [RATE (1 - beta1^k) / (ROOT root)] (m / (1 - beta1^k))
    #                                 / (sqrt(v) / root + EPS / (ROOT root)).
    unit = row[kernels.ROOT] * root
    steps = torch.full((), step, dtype=torch.float32, device=lists[0][0].device)
    size = max(tensor.numel() for tensor in lists[0])
    buffers = [torch.empty(size, dtype=t.dtype, device=t.device) for t in [lists[0][0]] * 2]
    for p, g, m, v, s in zip(*lists, scalars):
        clipped, bad = _clip(g, v, s, [buffer[: p.numel()] for buffer in buffers])
        _decay(p, row[kernels.BEFORE], bad)
        torch._fused_adamw_(
            [p],
            [clipped],
            [m],
            [v],
            [],
            [steps],
            lr=row[kernels.RATE] * (1.0 - beta1**step) / unit,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=row[kernels.EPS] / unit,
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=bad,
        )
        _decay(p, row[kernels.AFTER], bad)


def _clip(g: Tensor, v: Tensor, s: Tensor, buffers: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The clipped gradient, in the first buffer, and 1 where any of it isn't finite, else 0."""
    clipped, limit = buffers
    torch.sqrt(v, out=limit)
    limit.mul_(s[kernels.CLIP])
    limit.clamp_(max=s[kernels.CAP])  # leaves the NaN of inf * 0
    limit.masked_fill_(v == 0, math.inf)
    torch.neg(limit, out=clipped)
    torch.maximum(g, clipped, out=clipped)
    torch.minimum(clipped, limit, out=clipped)
    # The sum of finite entries may overflow only where each is near the largest float.
    return clipped, (~g.sum().isfinite()).to(torch.float32)


def _decay(p: Tensor, factor: float, bad: Tensor) -> None:
    if factor != 1.0:
        p.mul_(torch.where(bad > 0, 1.0, factor).to(p.dtype))
