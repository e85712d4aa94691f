"""LAPACK's steps by their addresses, against numpy."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from compress.numerics.lapack import gram_upper, tridiagonal, tridiagonal_eigenvalues


def drawn(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 3), (4, 9), (70, 130)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_upper_triangle_is_the_grams(shape, dtype, order):
    matrix = np.array(drawn(*shape, dtype=dtype), order=order)
    before = matrix.copy()
    found = gram_upper(matrix)
    assert found.dtype == dtype
    np.testing.assert_allclose(
        np.triu(found), np.triu(matrix @ matrix.T), rtol=1e-4 if dtype == np.float32 else 1e-12,
        atol=1e-5 if dtype == np.float32 else 1e-13,
    )  # fmt: skip
    assert np.array_equal(matrix, before)


@pytest.mark.parametrize("side", [2, 3, 40])
def test_the_steps_together_give_the_eigenvalues(side):
    matrix = drawn(side, 2 * side)
    wanted = np.linalg.eigvalsh(matrix @ matrix.T)
    found = tridiagonal_eigenvalues(*tridiagonal(gram_upper(matrix), 16))
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_a_path_graph_has_the_eigenvalues_of_its_formula():
    side = 9
    found = tridiagonal_eigenvalues(np.full(side, 2.0), np.full(side - 1, -1.0))
    wanted = 2 - 2 * np.cos(np.arange(1, side + 1) * np.pi / (side + 1))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_threads_do_not_disturb_each_other():
    matrices = [drawn(60, 90, seed=seed) for seed in range(24)]

    def values(matrix):
        return tridiagonal_eigenvalues(*tridiagonal(gram_upper(matrix), 16))

    alone = [values(matrix) for matrix in matrices]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(values, matrices))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
