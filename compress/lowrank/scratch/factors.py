"""Where a low-rank model starts: W0 by (seed, layer's name), and the factors that stand for it.

Since W0 depends on nothing else, a dense run and a low-rank one with the same seed share it, as do
two runs with other layers chosen. `svd` is LR-SMS's start (arXiv:2410.07771, with the even split of
spectral initialisation, arXiv:2105.01029): W0 = sum of s_i u_i v_i^T, up = U_r S_r^(1/2), down =
S_r^(1/2) V_r^T, hence up^T up = down down^T. Singular vectors have a sign each, which is chosen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.checkpoints import edits
from compress.checkpoints.edits.lowrank import LowRank
from compress.numerics.counter import generator

INITS = ("svd", "svd-scaled", "orthogonal", "gaussian")
_WEIGHT, _BIAS, _UP, _DOWN, _OTHER = range(5)  # what is drawn under a name
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Factors(NamedTuple):
    """up [out, rank] and down [rank, in] of a layer, float64."""

    up: Tensor
    down: Tensor


def draw(seed: int, name: str, what: int) -> torch.Generator:
    """The stream of random numbers for one part of one module."""
    word = hashlib.sha256(name.encode()).digest()
    parts = [int.from_bytes(word[i : i + 4], "big") for i in (0, 4)]
    return generator(seed, *parts, what)


@torch.no_grad()
def start_weights(model: PreTrainedModel, seed: int) -> None:
    """Draw every linear layer and convolution as torch's `reset_parameters` would, by name.

    U(-b, b) with b = 1 / sqrt(inputs of an output), weight and bias. A family's own start can be
    too small to begin with: N(0, 0.02) in the convolutions before a Conformer makes features of
    1e-4, which the first norm's epsilon erases. Other matrices, such as attention's biases of
    positions, are drawn from N(0, initializer_range); norms, embeddings and tied heads stay.

    Args:
        model: with its family's start; changed in place.
        seed: of the draws.
    """
    spread = float(getattr(model.config, "initializer_range", 0.02))
    tied = {*(getattr(model, "all_tied_weights_keys", None) or {})}
    for name, module in model.named_modules():
        if f"{name}.weight" in tied:
            continue
        if isinstance(module, (*_LAYERS, Conv1D)):
            bound = 1 / math.sqrt(as_matrix(module).shape[1])
            _uniform(module.weight, bound, draw(seed, name, _WEIGHT))
            if module.bias is not None:
                _uniform(module.bias, bound, draw(seed, name, _BIAS))
        elif not type(module).__module__.startswith("torch.nn"):
            for key, own in module.named_parameters(recurse=False):
                if own.ndim > 1:
                    stream = draw(seed, f"{name}.{key}", _OTHER)
                    own.copy_(spread * torch.randn(own.shape, generator=stream))


def _uniform(tensor: Tensor, bound: float, stream: torch.Generator) -> None:
    values = torch.rand(tensor.shape, generator=stream, dtype=torch.float32)
    tensor.copy_((2 * values - 1) * bound)


def make_factors(weight: Tensor, rank: int, init: str, seed: int, name: str) -> Factors:
    """Return the factors that a layer starts from.

    Args:
        weight: W0, [out, in].
        rank: from 1 to the smaller side.
        init: `svd`, the best approximation of W0; `svd-scaled`, the same with W0's Frobenius norm;
            `orthogonal`, the same directions, all with equal weight, and that norm; `gaussian`,
            random factors whose product has W0's mean square entry.
        seed, name: of the draws of `gaussian`.

    Returns:
        Balanced ones: up^T up = down down^T (in the mean, for `gaussian`).
    """
    weight = weight.detach().double().cpu()
    out, into = weight.shape
    if init == "gaussian":
        deviation = float(weight.norm()) / math.sqrt(out * into)
        each = math.sqrt(deviation) / rank**0.25
        up = torch.randn(out, rank, generator=draw(seed, name, _UP), dtype=torch.float64)
        down = torch.randn(rank, into, generator=draw(seed, name, _DOWN), dtype=torch.float64)
        tilt = (into / out) ** 0.25
        return Factors(up * each * tilt, down * each / tilt)
    left, values, right = signed_svd(weight)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    if init == "orthogonal":
        values = torch.full_like(values, float(weight.norm()) / math.sqrt(rank))
    elif init == "svd-scaled":
        values = values * (float(weight.norm()) / float(values.norm()))
    root = values.sqrt()
    return Factors(left * root, root[:, None] * right)


def signed_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition, each left vector's largest entry positive, on one thread.

    LAPACK leaves signs open, and sums in another order with another number of threads.
    """
    with _one_thread():
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    largest = left.abs().argmax(0)
    signs = torch.where(left.gather(0, largest[None])[0] < 0, -1.0, 1.0).to(left.dtype)
    return left * signs, values, right * signs[:, None]


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def factor_model(model: PreTrainedModel, ranks: Mapping[str, int], init: str, seed: int) -> None:
    """Put factors in the place of layers, after their start was drawn.

    A constructor's own factors would be redrawn by the family's `_init_weights`, to a product far
    too small.

    Args:
        model: with W0 in its layers; changed in place, and saved with these edits from now on.
        ranks: layer's name -> rank.
        init, seed: see make_factors.

    Raises:
        RequestError: a layer can't be factored.
    """
    started = {}
    for name, rank in ranks.items():
        weight = as_matrix(model.get_submodule(name))
        started[name] = make_factors(weight, rank, init, seed, name)
    edits.apply(model, {name: {"kind": "lowrank", "rank": rank} for name, rank in ranks.items()})
    for name, factors in started.items():
        made: Any = model.get_submodule(name)
        made.up.weight.copy_(factors.up.view_as(made.up.weight))
        made.down.weight.copy_(factors.down.view_as(made.down.weight))


def as_matrix(module: Any) -> Tensor:
    """Return a layer's weight as [out, in]."""
    weight: Tensor = module.weight
    if isinstance(module, Conv1D):
        return weight.T
    return weight.flatten(1) if weight.ndim > 2 else weight


def low_rank_layers(model: nn.Module) -> dict[str, LowRank]:
    """Return a model's layers of two factors by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LowRank)}
