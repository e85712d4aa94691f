"""SPAM: single steps against closed forms in float64, resets, blocks, and what must not happen."""

import copy
import io
import math

import pytest
import torch

from compress.errors import RequestError
from compress.training import SPAM
from compress.training.optimizers import kernels, native
from compress.training.optimizers import spam as module
from compress.training.optimizers.blocks import block_size, draw_blocks


def weight(*shape, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=dtype).requires_grad_()


def take(optimizer, parameter, gradients):
    """Step on each gradient; return the parameter after each."""
    path = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        path.append(parameter.detach().clone())
    return path


def reference(p, gradients, *, lr, betas, eps, theta, every, warmup, settle, bias, decay=0.0):
    """SPAM in plain words, an entry at a time: A1 as released, A6 as corrected."""
    b1, b2 = betas
    p = p.detach().clone()
    m, v, path = torch.zeros_like(p), torch.zeros_like(p), []
    k = 0
    for n, g in enumerate(gradients, 1):
        c = n % every if n >= every else None
        scale = 1.0
        if c is not None and c < warmup:
            scale = 1 - 0.495 * (1 + math.cos(math.pi * c / (warmup + 1)))
        if n % every == 0:
            m, v, k = torch.zeros_like(p), torch.zeros_like(p), 0
        k += 1
        if bias == "legacy":
            clip = n >= settle and n % every >= settle
            limit = theta * v
        else:
            clip = k - 1 >= max(settle, 1)
            limit = theta * v / (1 - b2 ** (k - 1)) if clip else v
        if clip:
            over = (g * g > limit) & (v > 0)
            g = torch.where(over, g.sign() * limit.sqrt(), g)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        if bias == "legacy":
            step = lr * scale * math.sqrt(1 - b2**n) / (1 - b1**n)
            p = p - step * m / (v.sqrt() + eps)
            p = p - lr * decay * p
        else:
            p = p * (1 - lr * decay)
            p = p - lr * scale * (m / (1 - b1**k)) / ((v / (1 - b2**k)).sqrt() + eps)
        path.append(p.clone())
    return path


OPTIONS = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "theta": 4.0}


def steady(count, *shape, seed=5, spikes=()):
    """Gradients whose settling limit isn't reached, with spikes of 30 where asked."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for n in range(1, count + 1):
        sign = torch.randint(0, 2, shape, generator=draw) * 2.0 - 1.0
        g = sign * (0.9 + 0.2 * torch.rand(*shape, generator=draw, dtype=torch.float64))
        found.append(g * (30.0 if n in spikes else 1.0))
    return found


@pytest.mark.parametrize("bias", ["restart", "legacy"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_every_step_is_that_of_the_formulas(bias, decay):
    p = weight(6, 5)
    gradients = steady(50, 6, 5, spikes=(9, 31, 44))
    options = {**OPTIONS, "bias": bias}
    expected = reference(p, gradients, every=20, warmup=6, settle=3, decay=decay, **options)
    optimizer = SPAM([p], reset_every=20, reset_warmup=6, settle=3, weight_decay=decay, **options)
    for ours, theirs in zip(take(optimizer, p, gradients), expected):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_without_spikes_and_resets_it_is_adamw():
    ours, theirs = weight(7, 9, dtype=torch.float32), weight(7, 9, dtype=torch.float32)
    common = {"lr": 1e-2, "eps": 1e-8, "weight_decay": 0.1}
    a = SPAM([ours], theta=math.inf, reset_every=0, **common)
    b = torch.optim.AdamW([theirs], **common)
    for seed in range(100):
        ours.grad = torch.randn(7, 9, generator=torch.Generator().manual_seed(seed))
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("never", [0, None, math.inf])
def test_never_reset(never):
    p = weight(3)
    optimizer = SPAM([p], reset_every=never)
    take(optimizer, p, steady(3, 3))
    assert float(optimizer.state[p]["step"]) == 3


def test_a_spike_is_cut_to_theta_times_the_second_moment():
    p = weight(1)
    optimizer = SPAM([p], betas=(0.0, 0.99), theta=9.0, settle=2, reset_every=0)
    ones = [torch.ones(1, dtype=torch.float64)] * 5
    take(optimizer, p, ones)
    take(optimizer, p, [torch.tensor([-1e9], dtype=torch.float64)])
    # v / (1 - beta2^5) = 1, so the gradient became -sqrt(9).
    assert float(optimizer.state[p]["exp_avg"]) == pytest.approx(-3.0, rel=1e-12)


def test_the_warm_up_after_a_reset():
    scales = [module.warmup_scale(n, 500, 150) for n in (1, 499, 500, 575, 649, 650, 999, 1000)]
    expected = [1, 1, 0.01, 0.4999, 0.9996, 1, 1, 0.01]
    assert scales == pytest.approx(expected, abs=1e-3)
    at_half = 1 - 0.495 * (1 + math.cos(math.pi * 75 / 151))
    assert module.warmup_scale(575, 500, 150) == pytest.approx(at_half, rel=1e-12)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_the_first_step_after_a_reset_has_the_learning_rate_times_the_scale(size):
    p = weight(4)
    optimizer = SPAM([p], lr=0.1, eps=0.0, reset_every=10, reset_warmup=5)
    gradients = [torch.full((4,), size, dtype=torch.float64)] * 10
    path = take(optimizer, p, gradients)
    scale = 1 - 0.495 * 2
    assert torch.allclose(path[8] - path[9], torch.full((4,), 0.1 * scale, dtype=torch.float64))


@pytest.mark.parametrize(("k", "factor"), [(1, 3.16), (8, 6.38), (20, 6.24), (100, 3.24)])
def test_legacy_steps_grow_after_a_reset(k, factor):
    p = weight(1)
    optimizer = SPAM([p], lr=1.0, eps=0.0, bias="legacy", reset_every=20_000, reset_warmup=0)
    optimizer.param_groups[0]["calls"] = 19_999
    take(optimizer, p, [torch.ones(1, dtype=torch.float64)] * 0)
    optimizer.state[p].update(
        step=torch.tensor(19_999.0),
        exp_avg=torch.ones(1, dtype=torch.float64),
        exp_avg_sq=torch.ones(1, dtype=torch.float64),
    )
    path = [p.detach().clone(), *take(optimizer, p, [torch.ones(1, dtype=torch.float64)] * k)]
    assert float(path[k - 1] - path[k]) == pytest.approx(factor, abs=0.006)


@pytest.mark.parametrize("bias", ["restart", "legacy"])
def test_a_dead_coordinate_gets_its_first_gradient_whole(bias):
    p = weight(3)
    optimizer = SPAM([p], betas=(0.9, 0.99), theta=4.0, settle=2, reset_every=0, bias=bias)
    alive = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    take(optimizer, p, [alive] * 30)
    before = p.detach().clone()
    take(optimizer, p, [torch.tensor([1.0, 1e4, 1.0], dtype=torch.float64)])
    assert float(optimizer.state[p]["exp_avg_sq"][1]) == pytest.approx(0.01 * 1e8)
    assert before[1] != p[1]


def test_a_spike_while_the_moment_settles_does_not_rule_it():
    p = weight(50)
    optimizer = SPAM([p], betas=(0.9, 0.99), theta=100.0, reset_every=30, settle=10)
    ones = torch.ones(50, dtype=torch.float64)
    take(optimizer, p, [ones] * 33)
    spike = ones.clone()
    spike[7] = 1e6
    take(optimizer, p, [spike])
    # Cut to sqrt(100) times the root mean square of before the reset, 1.
    assert float(optimizer.state[p]["exp_avg_sq"][7]) < 0.01 * 101 + 0.04


def test_legacy_cuts_nothing_while_it_settles():
    p = weight(2)
    optimizer = SPAM([p], theta=4.0, reset_every=30, settle=10, bias="legacy")
    take(optimizer, p, [torch.ones(2, dtype=torch.float64)] * 33)
    take(optimizer, p, [torch.full((2,), 1e3, dtype=torch.float64)])
    assert float(optimizer.state[p]["exp_avg_sq"].max()) == pytest.approx(0.001 * 1e6, rel=1e-3)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_out_entry_by_entry(wrong):
    p, other = weight(4), weight(4)
    a, b = SPAM([p], reset_every=0, settle=1), SPAM([other], reset_every=0, settle=1)
    good = steady(4, 4)
    take(a, p, good[:3])
    take(b, other, good[:3])
    kept = p.detach()[2].clone()
    moments = {n: a.state[p][n][2].clone() for n in ("exp_avg", "exp_avg_sq")}
    bad = good[3].clone()
    bad[2] = wrong
    take(a, p, [bad])
    take(b, other, good[3:])
    assert p[2] == kept
    assert all(a.state[p][n][2] == value for n, value in moments.items())
    assert torch.equal(p[[0, 1, 3]], other[[0, 1, 3]])
    assert torch.isfinite(p).all()


@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_not_written(density, dtype):
    p = weight(16, 256, dtype=torch.float32).detach().to(dtype).requires_grad_()
    optimizer = SPAM([p], theta=0.01, settle=1, density=density, weight_decay=0.1)
    for seed in range(4):
        p.grad = torch.randn(16, 256, generator=torch.Generator().manual_seed(seed)).to(dtype)
        before = p.grad.clone()
        optimizer.step()
        assert torch.equal(p.grad, before)


def test_closures_run_with_gradients():
    p = weight(5)
    optimizer = SPAM([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(20)]
    assert losses[-1] < losses[0]


def test_groups_have_their_own_options():
    a, b = weight(4, seed=1), weight(4, seed=2)
    start = b.detach().clone()
    optimizer = SPAM([{"params": [a], "theta": 1.0}, {"params": [b], "lr": 1e-30}], lr=0.1)
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    optimizer.step()
    assert optimizer.param_groups[0]["theta"] == 1.0
    assert optimizer.param_groups[1]["theta"] == 5000
    assert torch.allclose(b, start, atol=1e-20)


def test_a_parameter_that_joins_late_starts_its_own_count():
    early, late = weight(4, seed=1), weight(4, seed=1)
    optimizer = SPAM([early, late], lr=0.1, eps=0.0, reset_every=0)
    take(optimizer, early, steady(5, 4))
    before = late.detach().clone()
    late.grad = torch.full((4,), 1e-3, dtype=torch.float64)
    optimizer.step()
    assert torch.allclose(before - late.detach(), torch.full((4,), 0.1, dtype=torch.float64))


# State


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [1.0, 0.25])
@pytest.mark.parametrize("stop", [13, 19, 20, 23])
def test_resumed_in_a_cycle_it_goes_on_to_the_last_bit(dtype, density, stop):
    def build():
        p = weight(16, 256, dtype=torch.float32).detach().to(dtype).requires_grad_()
        q = weight(33, dtype=torch.float32).detach().to(dtype).requires_grad_()
        options = {"reset_every": 10, "reset_warmup": 4, "settle": 3, "theta": 4.0}
        return [p, q], SPAM([p, q], lr=0.01, density=density, weight_decay=0.1, **options)

    def go(ps, optimizer, steps):
        for seed in steps:
            draw = torch.Generator().manual_seed(seed)
            for p in ps:
                p.grad = torch.randn(p.shape, generator=draw).to(dtype)
            optimizer.step()

    whole, optimizer = build()
    go(whole, optimizer, range(35))
    first, optimizer = build()
    go(first, optimizer, range(stop))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second, optimizer = build()
    with torch.no_grad():
        for new, old in zip(second, first):
            new.copy_(old)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    floats = [
        v.dtype
        for s in optimizer.state.values()
        for v in s.values()
        if torch.is_tensor(v) and v.is_floating_point()
    ]
    assert set(floats) == {torch.float32}
    go(second, optimizer, range(stop, 35))
    for p, q in zip(whole, second):
        assert torch.equal(p, q)


def test_a_copy_steps_like_the_original():
    p = weight(8)
    optimizer = SPAM([p])
    take(optimizer, p, steady(3, 8))
    other = copy.deepcopy(optimizer)
    (q,) = other.param_groups[0]["params"]
    q.grad = p.grad = steady(1, 8)[0]
    optimizer.step()
    other.step()
    assert torch.equal(p, q)


def test_small_updates_of_bfloat16_weights_are_not_lost():
    p = torch.ones(64, dtype=torch.bfloat16).requires_grad_()
    optimizer = SPAM([p], lr=1e-4, reset_every=0)
    for _ in range(100):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert torch.allclose(p.float(), torch.full((64,), 0.99), atol=0.004)  # half a last place


# Sparse momentum


def test_only_chosen_blocks_have_state_and_move():
    p = weight(32, 256, dtype=torch.float32)
    start = p.detach().clone()
    optimizer = SPAM([p], density=0.25, reset_every=10)
    for seed in range(9):
        p.grad = torch.randn(32, 256, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
    state = optimizer.state[p]
    assert state["exp_avg"].shape == state["exp_avg_sq"].shape == (16, 128)
    moved = (p != start).view(64, 128)
    chosen = torch.zeros(64, dtype=torch.bool)
    chosen[state["blocks"]] = True
    assert torch.equal(moved.all(1), chosen)
    assert torch.equal(moved.any(1), chosen)
    bytes_held = sum(t.numel() * t.element_size() for t in state.values())
    assert bytes_held < 0.26 * 8 * p.numel()
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert not torch.equal(state["blocks"], chosen.nonzero().flatten())  # drawn anew at the reset


def test_chosen_entries_move_as_a_dense_spam_would():
    dense, sparse = weight(8, 256), weight(8, 256)
    options = {**OPTIONS, "reset_every": 0, "settle": 2, "weight_decay": 0.1}
    a, b = SPAM([dense], **options), SPAM([sparse], density=0.5, **options)
    start = sparse.detach().clone()
    gradients = steady(12, 8, 256, spikes=(7,))
    take(a, dense, gradients)
    take(b, sparse, gradients)
    chosen = torch.zeros(16, dtype=torch.bool)
    chosen[b.state[sparse]["blocks"]] = True
    moved, whole = sparse.detach().view(16, 128), dense.detach().view(16, 128)
    assert torch.allclose(moved[chosen], whole[chosen], rtol=1e-12)
    assert torch.equal(moved[~chosen], start.view(16, 128)[~chosen])


def test_blocks_depend_on_seed_parameter_and_reset_alone():
    p = weight(64, 256)
    torch.manual_seed(1)
    first = draw_blocks(p, 0.25, 3, 7, 2)
    torch.manual_seed(2)
    assert torch.equal(first, draw_blocks(p, 0.25, 3, 7, 2))
    assert len(first) == 32
    assert first.unique().numel() == 32
    others = [draw_blocks(p, 0.25, *key) for key in ((4, 7, 2), (3, 8, 2), (3, 7, 3))]
    assert not any(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(("shape", "size"), [((4, 256), 128), ((4, 96), 32), ((5, 7), 1)])
def test_blocks_divide_rows(shape, size):
    assert block_size(torch.empty(shape)) == size


def test_named_parameters_draw_by_name_and_others_by_place():
    a, b = weight(64, 256), weight(64, 256)
    one = SPAM([("x.weight", a), ("y.weight", b)], density=0.25)
    two = SPAM([("y.weight", b), ("x.weight", a)], density=0.25)
    for p in (a, b):
        p.grad = torch.ones_like(p)
    one.step()
    two.step()
    for p in (a, b):
        assert torch.equal(one.state[p]["blocks"], two.state[p]["blocks"])
    assert not torch.equal(one.state[a]["blocks"], one.state[b]["blocks"])


def test_vectors_stay_dense():
    p = weight(300)
    optimizer = SPAM([p], density=0.1)
    take(optimizer, p, steady(1, 300))
    assert optimizer.state[p]["exp_avg"].shape == p.shape


# Routes


def path_of(route, monkeypatch, *, density=1.0, bias="restart"):
    if route == "eager":
        monkeypatch.setattr(module, "fused_fits", lambda *_: False)
    ps = [weight(16, 256, dtype=torch.float32), weight(33, seed=2, dtype=torch.float32)]
    optimizer = SPAM(
        ps, lr=0.01, theta=4.0, settle=2, reset_every=7, reset_warmup=3, weight_decay=0.1,
        density=density, bias=bias, compile=route == "compiled",
    )  # fmt: skip
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + seed)
        for p in ps:
            p.grad = torch.randn(p.shape, generator=draw) * (20.0 if seed % 5 == 0 else 1.0)
        optimizer.step()
    return [p.detach() for p in ps], optimizer


@pytest.mark.parametrize("bias", ["restart", "legacy"])
def test_the_fused_route_agrees(bias, monkeypatch):
    fused, optimizer = path_of("fused", monkeypatch, bias=bias)
    assert optimizer._engine.route == "fused"
    eager, _ = path_of("eager", monkeypatch, bias=bias)
    for a, b in zip(fused, eager):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_the_fused_route_leaves_a_tensor_that_is_not_finite():
    p = weight(40, dtype=torch.float32)
    optimizer = SPAM([p], weight_decay=0.1, compile=False)
    take(optimizer, p, [torch.ones(40)] * 3)
    state = {n: t.clone() for n, t in optimizer.state[p].items()}
    before, bad = p.detach().clone(), torch.ones(40)
    bad[3] = math.nan
    take(optimizer, p, [bad])
    assert torch.equal(p, before)
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[p][name], state[name])


@pytest.mark.parametrize("density", [1.0, 0.25])
def test_the_compiled_route_agrees_and_is_compiled_once(density, monkeypatch):
    monkeypatch.setattr(kernels, "BUNDLES", (2, 1))
    monkeypatch.setattr(native, "_load", lambda: "left out")
    # Without weights of one kind alone: with 0.25 the matrix and the vector have a graph each.
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled, optimizer = path_of("compiled", monkeypatch, density=density)
    if optimizer._engine.fault:
        pytest.skip(f"no compiler here: {optimizer._engine.fault}")
    eager, _ = path_of("eager", monkeypatch, density=density)
    for a, b in zip(compiled, eager):
        assert torch.allclose(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize("density", [1.0, 0.25])
@pytest.mark.parametrize("bias", ["restart", "legacy"])
def test_the_native_route_agrees(density, bias, monkeypatch):
    through, optimizer = path_of("compiled", monkeypatch, density=density, bias=bias)
    if isinstance(native._load(), str):
        pytest.skip(f"no compiler here: {native._load()}")
    assert not optimizer._engine._compiled  # no graphs
    assert optimizer._engine.route == "native"
    eager, _ = path_of("eager", monkeypatch, density=density, bias=bias)
    for a, b in zip(through, eager):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_a_call_holds_tensors_of_one_size_and_all_are_called_once():
    sizes = [5] * 22 + [7, 9, 7, 5, 7, 7]
    tensors = [torch.zeros(size, 2) for size in sizes]
    calls = kernels._bundles([tensors, [torch.zeros(3)] * len(sizes)])
    assert sorted(place for places in calls for place in places) == list(range(len(sizes)))
    assert all(len({sizes[place] for place in places}) == 1 for places in calls)
    assert sorted(len(places) for places in calls) == [1, 1, 1, 1, 4, 4, 16]


def test_a_broken_compiler_is_said_once_and_worked_around(monkeypatch):
    def broken(*_, **__):
        def call(*_):
            raise RuntimeError("No working C++ compiler\nmore")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(native, "_load", lambda: "no C++ compiler was found")
    with pytest.warns(UserWarning, match="can't be compiled .RuntimeError: No working C"):
        through, optimizer = path_of("compiled", monkeypatch)
    assert optimizer._engine.fault == "RuntimeError: No working C++ compiler"
    monkeypatch.undo()
    straight, _ = path_of("fused", monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(through, straight))


def test_without_a_compiler_a_small_optimizer_says_nothing(monkeypatch, recwarn):
    monkeypatch.setattr(native, "_load", lambda: "no C++ compiler was found")
    p = weight(40, dtype=torch.float32)
    optimizer = SPAM([p])
    take(optimizer, p, [torch.ones(40)])
    assert not recwarn.list
    assert optimizer._engine.fault is None


def test_small_optimizers_make_no_graphs_by_themselves():
    assert not kernels.Engine("auto", 9_999_999)._wanted
    assert kernels.Engine("auto", 10_000_000)._wanted
    assert not kernels.Engine(False, 10**9)._wanted


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_other_memory_orders_step_the_same(density):
    p = weight(4, 8, 4, 4)
    q = p.detach().clone(memory_format=torch.channels_last).requires_grad_()
    assert not q.is_contiguous()
    options = {**OPTIONS, "settle": 1, "density": density}
    gradients = steady(6, 4, 8, 4, 4)
    take(SPAM([p], **options), p, gradients)
    take(SPAM([q], **options), q, gradients)
    assert torch.allclose(p, q, rtol=1e-12)


def test_counts_only_when_asked():
    p = weight(100)
    optimizer = SPAM([p], theta=4.0, settle=2, reset_every=0)
    ones = torch.ones(100, dtype=torch.float64)
    spike = ones.clone()
    spike[:3] = 100.0
    take(optimizer, p, [*[ones] * 5, spike])
    assert optimizer.report()["clipped"] == 0
    optimizer.counting = True
    take(optimizer, p, [ones, torch.where(spike > 1, 1000.0, 1.0).double()])
    assert optimizer.report() == {"clipped": 3.0, "resets": 0.0, "scale": 1.0}


# Options


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"lr": 0.0}, "lr is 0"),
        ({"lr": -1.0}, "lr is -1"),
        ({"betas": (1.0, 0.9)}, "beta1 is 1"),
        ({"density": 0.0}, "density is 0"),
        ({"density": 1.5}, "density is 1.5"),
        ({"theta": 0.0}, "theta is 0"),
        ({"theta": math.nan}, "theta is nan"),
        ({"bias": "none"}, "bias is `none`, it must be restart or legacy"),
        ({"reset_every": -1}, "reset_every is -1"),
        ({"settle": 2.5}, "settle is 2.5"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ],
)
def test_options_that_cannot_be(option, words):
    with pytest.raises(RequestError, match=words.replace("[", r"\[")):
        SPAM([weight(2)], **option)
    with pytest.raises(ValueError):
        SPAM([{"params": [weight(2)], **option}])


def test_a_bad_group_is_not_added():
    optimizer = SPAM([weight(2)])
    with pytest.raises(ValueError):
        optimizer.add_param_group({"params": [weight(2)], "density": 2.0})
    assert len(optimizer.param_groups) == 1
