"""A matrix against itself with its elements shuffled: how far its spectrum is from noise's."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from compress.numerics import permutation


def shuffled(weight: Tensor, seed: int) -> Tensor:
    """The same elements in a random order, which is the same for every matrix of that size.

    Args:
        weight: [out, in].
        seed: >= 0; the order depends on it and on the number of elements only.
    """
    order = _order(seed, weight.numel()).to(weight.device)
    return weight.reshape(-1)[order].reshape(weight.shape)


@functools.lru_cache(maxsize=2)  # matrices of one size come one after the other
def _order(seed: int, count: int) -> Tensor:
    return torch.from_numpy(permutation(seed, 0, count))


def spectral_distance(one: np.ndarray, two: np.ndarray) -> float | None:
    """Jensen-Shannon distance between two spectra of one length, 0 to 0.83 (sqrt ln 2).

    WeightWatcher's rand_distance: each spectrum, ascending, counts as a distribution over its
    ranks, the eigenvalues divided by their sum.

    Args:
        one, two: [N] >= 0, ascending.

    Returns:
        None where one of them is all zeros.
    """
    if not one.any() or not two.any():
        return None
    p, q = one / one.sum(), two / two.sum()
    # Zeros add nothing.
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return float(np.sqrt(max(divergence, 0.0)))


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> float:
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())
