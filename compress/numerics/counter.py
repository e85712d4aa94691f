"""Random numbers that depend on a seed and on counters, never on what was drawn before.

Each stream is keyed by (seed, counter, counter, …), so rows, steps and ranks draw the same numbers
in any order, on any number of processes, and after a resume. Keys come from numpy's SeedSequence,
streams from Philox; numpy promises both to stay the same from version to version.
"""

from __future__ import annotations

import numpy as np
import torch


def generator(seed: int, *counters: int) -> torch.Generator:
    """A CPU generator for one (seed, counters…): equal arguments, equal numbers.

    Args:
        seed: >= 0.
        counters: >= 0, such as step and row; (1,) and (1, 0) are different streams.
    """
    key = _sequence(seed, counters).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(key) >> 1)


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """A random order of range(n), int64 [n], for one (seed, epoch).

    Sorts raw Philox words, of which numpy keeps the values fixed, unlike those of its shuffles.
    """
    words = np.random.Philox(_sequence(seed, (epoch,))).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64)


def _sequence(seed: int, counters: tuple[int, ...]) -> np.random.SeedSequence:
    # As spawn keys, since a plain list of entropy is padded with zeros: [1] would equal [1, 0].
    return np.random.SeedSequence(seed, spawn_key=counters)
