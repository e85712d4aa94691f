"""Counter-based random numbers: same key, same numbers, whatever was drawn before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress.numerics import generator, permutation


def draw(*key: int) -> list[float]:
    return torch.rand(4, generator=generator(*key)).tolist()


def test_order_of_drawing_is_irrelevant():
    forward = [draw(7, step) for step in range(5)]
    backward = [draw(7, step) for step in reversed(range(5))]
    assert forward == backward[::-1]


def test_every_key_is_its_own_stream():
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 1, 0), (0, 0, 1), (2**40,), (2**33,)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_a_permutation_is_one_and_depends_on_seed_and_epoch():
    order = permutation(3, 1, 1000)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(order, permutation(3, 1, 1000))
    assert not np.array_equal(order, permutation(3, 2, 1000))
    assert not np.array_equal(order, permutation(4, 1, 1000))
    assert permutation(0, 0, 0).tolist() == []


def test_places_are_uniform():
    places = np.array([int(np.where(permutation(seed, 0, 8) == 0)[0][0]) for seed in range(800)])
    counts = np.bincount(places, minlength=8)
    assert counts.min() > 60
    assert counts.max() < 145


def test_negative_seeds_are_refused():
    with pytest.raises(ValueError):
        generator(-1)
