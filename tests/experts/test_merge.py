"""Merged MLPs against the sum of the MLPs that they were made of."""

import pytest
import torch
from torch.nn import functional as F

from compress.experts import merge_experts
from compress.experts.layers import apply_mlp
from compress.experts.merge import widened


def mlps(widths, hidden=12, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)
    return (
        [draw(w, hidden) for w in widths],
        [draw(w, hidden) for w in widths],
        [draw(hidden, w) for w in widths],
    )


def slow_sum(gates, ups, downs, weights, x):
    out = torch.zeros(len(x), downs[0].shape[0], dtype=x.dtype)
    for gate, up, down, weight in zip(gates, ups, downs, weights, strict=True):
        out += weight * ((F.silu(x @ gate.T) * (x @ up.T)) @ down.T)
    return out


@pytest.mark.parametrize("widths", [(5,), (3, 7, 4), (1, 1)])
def test_one_mlp_computes_the_weighted_sum(widths):
    gates, ups, downs = mlps(widths)
    weights = torch.linspace(-0.5, 2.0, len(widths)).tolist()
    x = torch.randn(9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    merged = merge_experts(gates, ups, downs, weights)
    assert merged.width == sum(widths)
    torch.testing.assert_close(
        apply_mlp(merged, x, F.silu), slow_sum(gates, ups, downs, weights, x)
    )


def test_stacked_tensors_and_tensor_weights_do_as_well():
    gates, ups, downs = mlps((4, 4, 4))
    one = merge_experts(gates, ups, downs, [0.1, 0.2, 0.3])
    other = merge_experts(
        torch.stack(gates), torch.stack(ups), torch.stack(downs), torch.tensor([0.1, 0.2, 0.3])
    )
    torch.testing.assert_close(one.down, other.down, rtol=1e-6, atol=0)
    assert torch.equal(one.gate, other.gate)


def test_sixteen_bit_weights_are_multiplied_in_float32_and_rounded_once():
    gates, ups, downs = mlps((6,), dtype=torch.bfloat16)
    merged = merge_experts(gates, ups, downs, [0.3])
    assert merged.down.dtype == torch.bfloat16
    assert torch.equal(merged.down, (downs[0].float() * 0.3).to(torch.bfloat16))


def test_zero_columns_change_nothing():
    merged = merge_experts(*mlps((3, 4)), [1.0, 2.0])
    x = torch.randn(5, 12, dtype=torch.float64)
    wide = widened(merged, 11)
    assert wide.gate.shape == (11, 12)
    torch.testing.assert_close(apply_mlp(wide, x, F.silu), apply_mlp(merged, x, F.silu))
    with pytest.raises(ValueError, match="width 7 can't be made 6"):
        widened(merged, 6)


def test_what_does_not_fit_together_is_refused():
    gates, ups, downs = mlps((3, 4))
    with pytest.raises(ValueError, match="each MLP needs one"):
        merge_experts(gates, ups, downs, [1.0])
    with pytest.raises(ValueError, match="each MLP needs one"):
        merge_experts([], [], [], [])
    with pytest.raises(ValueError, match=r"aren't \[I, H\]"):
        merge_experts(gates, ups, downs[::-1], [1.0, 1.0])
