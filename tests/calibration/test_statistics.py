"""Column norms and Gram matrices: closed forms, padding, precision, faults."""

from __future__ import annotations

import pytest
import torch

from compress.calibration import ColumnMoments, ColumnNorms, Gram, real_rows
from compress.calibration.statistics import STRIP
from compress.errors import RunError


def _inputs(rows=300, width=7, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_norms_and_gram_are_the_definitions_in_float64():
    x = _inputs()
    norms, gram = ColumnNorms(), Gram(dtype=torch.float64)
    for part in x.split(64):
        norms.add(part)
        gram.add(part)
    wide = x.double()
    assert norms.value().dtype == torch.float32
    assert torch.allclose(norms.value().double(), wide.square().sum(0).sqrt(), rtol=1e-7)
    assert torch.allclose(gram.value(), wide.T @ wide, rtol=1e-12)
    assert norms.rows == gram.rows == 300


def test_moments_are_the_definitions_in_float64():
    x = _inputs() + torch.linspace(-50, 50, 7)  # means far above the spread
    x[:, 3] = 2  # a constant
    found, norms = ColumnMoments(), ColumnNorms()
    for part in x.split(64):
        found.add(part)
        norms.add(part)
    mean, variance, norm = found.value()
    assert mean.dtype == variance.dtype == torch.float32
    assert torch.allclose(mean.double(), x.double().mean(0), rtol=1e-6, atol=1e-6)
    assert torch.allclose(variance.double(), x.double().var(0, correction=0), rtol=1e-3)
    assert float(variance[3]) == 0
    assert torch.equal(norm, norms.value())


def test_moments_leave_padding_out_and_name_the_module_of_a_nan():
    x, keep = _inputs(), torch.arange(300) < 40
    bare, masked = ColumnMoments(), ColumnMoments()
    bare.add(x[:40])
    masked.add(x, keep)
    for a, b in zip(bare.value(), masked.value(), strict=True):
        assert torch.equal(a, b)
    for fill in (0, 1):
        broken = ColumnMoments("layer")
        if fill:
            broken.add(x * torch.nan)
        with pytest.raises(RunError, match="`layer`"):
            broken.value()


def test_the_grams_diagonal_is_the_squared_norms():
    x = _inputs()
    norms, gram = ColumnNorms(), Gram()
    norms.add(x)
    gram.add(x)
    assert gram.value().dtype == torch.float32
    assert torch.allclose(gram.value().diagonal(), norms.value().square(), rtol=1e-5)


@pytest.mark.parametrize("pad", [0.0, 1e4, float("nan")])
@pytest.mark.parametrize("left", [True, False])
def test_padding_never_counts_whatever_it_holds(pad, left):
    real = _inputs(24, 5).reshape(2, 12, 5)
    padding = torch.full((2, 40, 5), pad)
    parts = [padding, real] if left else [real, padding]
    padded = torch.cat(parts, 1)
    keep = torch.zeros(2, 52, dtype=torch.bool)
    keep[:, -12:] = left
    keep[:, :12] |= not left
    for kind in (ColumnNorms, Gram):
        bare, masked = kind(), kind()
        bare.add(real)
        masked.add(padded, keep)
        assert torch.equal(bare.value(), masked.value())
        assert bare.rows == masked.rows == 24


def test_statistics_add_over_parts():
    first, second = _inputs(seed=1), _inputs(seed=2)
    parts = [Gram(dtype=torch.float64) for _ in range(3)]
    parts[0].add(first)
    parts[1].add(second)
    parts[2].add(torch.cat([first, second]))
    assert torch.allclose(parts[0].value() + parts[1].value(), parts[2].value(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_raised_before_they_are_squared(dtype):
    # 300^2 overflows float16, and 4096 ones summed in bfloat16 stick at 256.
    x = torch.cat([torch.full((4096, 1), 1.0), torch.full((4096, 1), 300.0)], 1).to(dtype)
    norms, gram = ColumnNorms(), Gram()
    norms.add(x)
    gram.add(x)
    large = float(x[0, 1])
    assert torch.allclose(norms.value(), torch.tensor([64.0, 64.0 * large]))
    assert torch.allclose(
        gram.value().diagonal(), torch.tensor([4096.0, 4096.0 * large**2]), rtol=1e-3
    )


def test_many_small_additions_keep_their_precision():
    # In float32, adding 1 to 2^24 changes nothing.
    norms = ColumnNorms()
    norms.add(torch.full((1, 1), 4096.0))
    for _ in range(64):
        norms.add(torch.ones(1, 1))
    assert norms.value().double().square().item() == pytest.approx(2**24 + 64, rel=1e-7)


def test_chunks_inside_a_call_change_no_bit_of_a_short_one(monkeypatch):
    x = _inputs(1000, 3)
    whole, cut = Gram(dtype=torch.float64), Gram(dtype=torch.float64)
    whole.add(x)
    monkeypatch.setattr("compress.calibration.statistics.CHUNK_ROWS", 128)
    cut.add(x)
    assert torch.allclose(whole.value(), cut.value(), rtol=1e-12)


def test_float32_products_stay_float32_under_a_fast_setting():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        gram = Gram()
        gram.add(_inputs())
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("kind", [ColumnNorms, Gram])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_names_the_module(kind, bad):
    statistic = kind("model.layers.3.mlp.down_proj")
    x = _inputs()
    x[5, 2] = bad
    statistic.add(x)
    with pytest.raises(RunError, match=r"model\.layers\.3\.mlp\.down_proj") as error:
        statistic.value()
    assert error.value.code == 3
    assert "not finite" in error.value.message


@pytest.mark.parametrize("kind", [ColumnNorms, Gram])
def test_no_token_is_an_error_that_names_the_module(kind):
    statistic = kind("experts.7")
    statistic.add(torch.zeros(0, 4))
    with pytest.raises(RunError, match=r"experts\.7"):
        statistic.value()


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="token mask"):
        real_rows(torch.zeros(2, 3, 4), torch.ones(2, 2, dtype=torch.bool))


def test_a_gram_in_half_precision_is_refused():
    with pytest.raises(ValueError, match="float32 or float64"):
        Gram(dtype=torch.bfloat16)


def test_a_wide_gram_is_summed_by_strips_and_read_at_any_time():
    """Wider than two strips; a value that was read is taken further by what comes after."""
    torch.manual_seed(0)
    first, second = torch.randn(40, 2 * STRIP + 37), torch.randn(9, 2 * STRIP + 37)
    gram = Gram(dtype=torch.float64)
    gram.add(first)
    wide = first.double()
    torch.testing.assert_close(gram.value(), wide.T @ wide, rtol=1e-12, atol=1e-12)
    gram.add(second)
    wide = torch.cat([wide, second.double()])
    torch.testing.assert_close(gram.value(), wide.T @ wide, rtol=1e-12, atol=1e-12)
    assert torch.equal(gram.value(), gram.value().T)
