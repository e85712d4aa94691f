"""Stable-SPAM against the formulas of A3, its released slips under `legacy`, and on two ranks."""

import io
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compress.training import StableSPAM
from compress.training.optimizers import kernels, native, reductions
from compress.training.optimizers.stable_spam import MAXIMUM, NORM, SKIPPED, W_MAXIMUM

ROOT = Path(__file__).resolve().parents[2]


def weight(*shape, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=dtype).requires_grad_()


def take(optimizer, parameter, gradients):
    path = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        path.append(parameter.detach().clone())
    return path


def reference(p, gradients, *, lr, eps, decay, gammas, every, mode, bias, betas=(0.9, 0.999)):
    """A3 in plain words; with bias legacy as released (A5)."""
    (b1, b2), (g1, g2, g3) = betas, gammas
    p = p.detach().clone()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    top = a = b = 0.0
    step = 0
    for t, g in enumerate(gradients, 1):
        resets = t % every == 0
        step += 1
        since = t if bias == "restart" else step
        p = p * (1 - lr * decay)
        largest = g.abs().max()
        top = g3 * top + (1 - g3) * largest
        limit = top / (1 - g3**since)
        cut = g.sign() * limit if mode == "clamp" else g * limit / largest
        g = torch.where(g.abs() > limit, cut, g)
        n = g.norm()
        a, b = g1 * a + (1 - g1) * n, g2 * b + (1 - g2) * n * n
        g = g / n * (a / (1 - g1**since)) / ((b / (1 - g2**since)).sqrt() + eps)
        if resets:
            step = 1
            if bias == "restart":
                m, v = torch.zeros_like(p), torch.zeros_like(p)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p = p - lr * (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + eps)
        if resets and bias == "legacy":
            m, v = torch.zeros_like(p), torch.zeros_like(p)
    return p


def spiky(count, *shape):
    draw = torch.Generator().manual_seed(1)
    found = [torch.randn(*shape, generator=draw, dtype=torch.float64) for _ in range(count)]
    found[13] = found[13] * 50
    found[20][..., 0] = 1000.0
    return found


@pytest.fixture(params=["rows", "whole"])
def measured(request, monkeypatch):
    """Both ways to reduce: the CPU's, and that of devices, where nothing may be looked at."""
    if request.param == "whole":
        monkeypatch.setattr(reductions, "MeasuredRows", reductions.Measured)


@pytest.mark.parametrize("mode", ["scale", "clamp"])
@pytest.mark.parametrize("bias", ["restart", "legacy"])
@pytest.mark.parametrize("shape", [(70, 129), (9,), (4, 2048)])
def test_every_step_is_that_of_the_formulas(mode, bias, shape, measured):
    p, gradients = weight(*shape), spiky(40, *shape)
    gammas = (0.7, 0.9, 0.999)
    common = {"lr": 0.01, "eps": 1e-8, "bias": bias}
    expected = reference(p, gradients, decay=0.1, gammas=gammas, every=11, mode=mode, **common)
    optimizer = StableSPAM([p], weight_decay=0.1, reset_every=11, adaclip=mode, **common)
    take(optimizer, p, gradients)
    assert torch.allclose(p, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("every", "size"), [(1000, 0.398), (10, 2.06)])
def test_legacy_uses_old_moments_at_a_reset(every, size):
    p = weight(1)
    optimizer = StableSPAM([p], lr=1.0, eps=0.0, reset_every=every, bias="legacy")
    path = take(optimizer, p, [torch.ones(1, dtype=torch.float64)] * (every + 3))
    steps = [float(path[i - 1] - path[i]) for i in range(every - 1, every + 3)]
    assert steps == pytest.approx([size, 0.744, 0.856, 0.904], abs=0.006)


def test_after_a_reset_a_step_is_the_learning_rate():
    p = weight(1)
    optimizer = StableSPAM([p], lr=0.1, eps=0.0, reset_every=10)
    path = take(optimizer, p, [torch.ones(1, dtype=torch.float64)] * 14)
    assert [float(a - b) for a, b in itertools.pairwise(path)] == pytest.approx([0.1] * 13)


def test_the_limits_go_on_over_resets():
    p = weight(5)
    optimizer = StableSPAM([p], reset_every=10)
    take(optimizer, p, [torch.ones(5, dtype=torch.float64)] * 25)
    found = optimizer.state[p]["statistics"]
    assert float(found[W_MAXIMUM]) == pytest.approx(1 - 0.999**25, rel=1e-12)
    assert float(found[MAXIMUM] / found[W_MAXIMUM]) == pytest.approx(1.0)


@pytest.mark.parametrize(("t", "lifted"), [(200, 6.5), (6000, 2.0)])
def test_a_spike_lifts_its_own_limit(t, lifted):
    p = weight(2)
    optimizer = StableSPAM([p], lr=1e-9, reset_every=0, adaclip="clamp", betas=(0.0, 0.9))
    ones = torch.ones(2, dtype=torch.float64)
    take(optimizer, p, [ones])
    whole = optimizer.state[p]["statistics"]
    whole[MAXIMUM] = whole[W_MAXIMUM] = 1 - 0.999 ** (t - 1)
    take(optimizer, p, [torch.tensor([1000.0, 1.0], dtype=torch.float64)])
    found = optimizer.state[p]["statistics"]
    assert float(found[MAXIMUM] / found[W_MAXIMUM]) == pytest.approx(lifted, abs=0.05)


def test_the_norm_after_an_unclipped_spike_answers_as_measured():
    # gamma3 0 makes That = M: nothing is ever clipped.
    p = weight(4)
    optimizer = StableSPAM([p], lr=1e-9, betas=(0.0, 0.0), gamma3=0.0, eps=0.0, reset_every=0)
    ones = torch.ones(4, dtype=torch.float64)
    take(optimizer, p, [ones] * 300)
    seen = {}
    for after in range(141):
        take(optimizer, p, [ones * (1000.0 if after == 0 else 1.0)])
        seen[after] = float(optimizer.state[p]["exp_avg"].norm())
    expected = {0: 0.95, 21: 0.011, 60: 0.07, 100: 0.52, 140: 0.98}
    assert {k: seen[k] for k in expected} == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_tensor_that_is_not_finite_is_left_alone_and_counted(wrong, measured):
    p, q = weight(3, 4096), weight(3, 4096)
    optimizer = StableSPAM([p, q], weight_decay=0.1, reset_every=0)
    for seed in range(3):
        p.grad, q.grad = weight(3, 4096, seed=seed).detach(), weight(3, 4096, seed=seed).detach()
        optimizer.step()
    before = {n: t.clone() for n, t in optimizer.state[p].items()}
    kept, other = p.detach().clone(), q.detach().clone()
    p.grad[1, 7] = wrong
    optimizer.step()
    assert torch.equal(p, kept)
    assert not torch.equal(q, other)
    found = optimizer.state[p]
    assert torch.equal(found["exp_avg"], before["exp_avg"])
    assert torch.equal(found["statistics"][:SKIPPED], before["statistics"][:SKIPPED])
    assert optimizer.report()["nonfinite"] == 1
    assert torch.isfinite(torch.stack([s["statistics"] for s in optimizer.state.values()])).all()


def test_a_gradient_of_zeros_moves_nothing_and_breaks_nothing():
    p = weight(5)
    start = p.detach().clone()
    optimizer = StableSPAM([p], lr=0.1)
    take(optimizer, p, [torch.zeros(5, dtype=torch.float64)] * 3)
    assert torch.equal(p, start)
    take(optimizer, p, [torch.ones(5, dtype=torch.float64)])
    assert torch.isfinite(p).all()
    assert not torch.equal(p, start)


def test_slow_averages_are_exact_in_bfloat16():
    p = torch.ones(8, dtype=torch.bfloat16).requires_grad_()
    optimizer = StableSPAM([p], lr=1e-6, gamma2=0.99999, reset_every=0)
    for _ in range(500):
        p.grad = torch.ones_like(p)
        optimizer.step()
    found = optimizer.state[p]["statistics"]
    assert float(found[NORM]) == pytest.approx(math.sqrt(8), rel=1e-6)
    assert optimizer.state[p]["exp_avg_sq"].dtype == torch.float32


def test_beta_decay_stays_corrected():
    p = weight(1)
    optimizer = StableSPAM([p], lr=0.1, eps=0.0, reset_every=0, beta_decay="cosine", total_steps=20)
    path = take(optimizer, p, [torch.ones(1, dtype=torch.float64)] * 30)
    assert [float(a - b) for a, b in itertools.pairwise(path)] == pytest.approx([0.1] * 29)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", ["restart", "legacy"])
def test_resumed_in_a_cycle_it_goes_on_to_the_last_bit(dtype, bias):
    def build():
        ps = [weight(3, 4096, dtype=torch.float32), weight(33, dtype=torch.float32)]
        ps = [p.detach().to(dtype).requires_grad_() for p in ps]
        return ps, StableSPAM(ps, lr=0.01, reset_every=10, bias=bias, weight_decay=0.1)

    def go(ps, optimizer, steps):
        for seed in steps:
            draw = torch.Generator().manual_seed(seed)
            for p in ps:
                p.grad = torch.randn(p.shape, generator=draw).to(dtype)
                before = p.grad.clone()
            optimizer.step()
            assert torch.equal(p.grad, before)

    whole, optimizer = build()
    go(whole, optimizer, range(25))
    first, optimizer = build()
    go(first, optimizer, range(13))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second, optimizer = build()
    with torch.no_grad():
        for new, old in zip(second, first):
            new.copy_(old)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    go(second, optimizer, range(13, 25))
    assert all(torch.equal(p, q) for p, q in zip(whole, second))


def test_the_compiled_route_agrees_and_is_compiled_once(monkeypatch):
    monkeypatch.setattr(kernels, "BUNDLES", (2, 1))
    monkeypatch.setattr(native, "_load", lambda: "left out")

    def path(compiling):
        ps = [weight(3 + i, 4096, seed=i, dtype=torch.float32) for i in range(3)]
        optimizer = StableSPAM(ps, lr=0.01, reset_every=7, weight_decay=0.1, compile=compiling)
        for seed in range(12):
            draw = torch.Generator().manual_seed(seed)
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + seed)
            for p in ps:
                p.grad = torch.randn(p.shape, generator=draw) * (30.0 if seed == 5 else 1.0)
            optimizer.step()
        return [p.detach() for p in ps], optimizer

    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled, optimizer = path(True)
    if optimizer._engine.fault:
        pytest.skip(f"no compiler here: {optimizer._engine.fault}")
    for a, b in zip(compiled, path(False)[0]):
        assert torch.allclose(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"gamma3": 1.0}, "gamma3 is 1"),
        ({"adaclip": "cut"}, "adaclip is `cut`, it must be scale or clamp"),
        ({"beta_decay": "linear"}, "beta_decay is `linear`"),
        ({"lr": 0.0}, "lr is 0"),
        ({"total_steps": 0}, "total_steps is 0"),
    ],
)
def test_options_that_cannot_be(option, words):
    with pytest.raises(ValueError, match=words):
        StableSPAM([weight(2)], **option)


def test_sharded_over_two_processes_it_is_the_same(tmp_path):
    """FSDP2 on gloo: both optimizers, uneven shards, a checkpoint loaded by one process."""
    script = Path(__file__).with_name("sharded_optimizers.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for start in ([*command, str(script)], [sys.executable, str(script)]):
        done = subprocess.run(
            [*start, str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ("SPAM", "StableSPAM"):
        two = torch.load(tmp_path / f"{name}-2.pt", weights_only=True)
        one = torch.load(tmp_path / f"{name}-1.pt", weights_only=True)
        resumed = torch.load(tmp_path / f"{name}-resumed.pt", weights_only=True)
        for key in one:
            assert torch.allclose(two[key], one[key], rtol=1e-10, atol=1e-13), (name, key)
            assert torch.allclose(resumed[key], one[key], rtol=1e-10, atol=1e-13), (name, key)
