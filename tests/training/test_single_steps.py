"""Every optimizer's first steps against its formula, written slowly, in float64.

SPAM's and Stable-SPAM's have files of their own.
"""

import importlib.util

import pytest
import torch

import tiny_models
from compress.training.optimizers import build_optimizer
from compress.training.optimizers.apollo import APOLLO

LR, DECAY, B1, B2 = 0.01, 0.1, 0.9, 0.99
others = pytest.mark.skipif(
    importlib.util.find_spec("pytorch_optimizer") is None, reason="pytorch_optimizer is missing"
)


def weight(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()


def gradients(count, *shape, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draw, dtype=torch.float64) for _ in range(count)]


def steps(name, shape=(6, 10), count=3, **options):
    """The weight of a hidden matrix before, its gradients, and the weight after each."""
    p = weight(*shape)
    options = {"betas": (B1, B2), "weight_decay": DECAY, **options}
    optimizer = build_optimizer(name, [("layers.0.mlp.up_proj.weight", p)], LR, **options)
    start, found, path = p.detach().clone(), gradients(count, *shape), []
    for gradient in found:
        p.grad = gradient.clone()
        optimizer.step()
        path.append(p.detach().clone())
    return start, found, path


def adam(found, eps):
    """mhat / (sqrt(vhat) + eps) of the last gradient."""
    m = v = torch.zeros_like(found[0])
    for g in found:
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
    k = len(found)
    return (m / (1 - B1**k)) / ((v / (1 - B2**k)).sqrt() + eps)


def test_adamw():
    p, found, path = steps("adamw", eps=1e-6)
    for k, after in enumerate(path, 1):
        p = p * (1 - LR * DECAY) - LR * adam(found[:k], 1e-6)
        assert torch.allclose(after, p, rtol=1e-6, atol=1e-9)


def test_lion():
    pytest.importorskip("pytorch_optimizer")
    p, found, path = steps("lion")
    m = torch.zeros_like(p)
    for g, after in zip(found, path):
        p = p * (1 - LR * DECAY) - LR * torch.sign(B1 * m + (1 - B1) * g)
        m = B2 * m + (1 - B2) * g
        assert torch.allclose(after, p, rtol=1e-12)


def test_adafactor():
    p, found, path = steps("adafactor")
    rows, columns = torch.zeros(6, 1).double(), torch.zeros(1, 10).double()
    for t, (g, after) in enumerate(zip(found, path), 1):
        new = t**-0.8
        rate = max(1e-3, float(p.square().mean().sqrt())) * min(LR, t**-0.5)
        rows = rows + new * ((g * g).mean(1, keepdim=True) - rows)
        columns = columns + new * ((g * g).mean(0, keepdim=True) - columns)
        update = g / (rows * columns / rows.mean()).sqrt()
        update = update / max(1.0, float(update.square().mean().sqrt()))
        p = p * (1 - LR * DECAY) - rate * update
        assert torch.allclose(after, p, rtol=1e-10)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_muon(shape):
    """The momentum's singular values go through the five polynomials, its vectors stay."""
    p, found, path = steps("muon", shape)
    momentum = torch.zeros(shape).double()
    for g, after in zip(found, path):
        momentum = 0.95 * momentum + 0.05 * g
        u, s, v = torch.linalg.svd(0.05 * g + 0.95 * momentum, full_matrices=False)
        s = s / s.norm()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        p = p * (1 - LR * DECAY) - 0.2 * max(shape) ** 0.5 * LR * (u @ torch.diag(s) @ v)
        moved = (after - p).norm() / (LR * 0.2 * max(shape) ** 0.5)
        assert moved < 0.05 * s.norm()  # torch iterates in bfloat16
        p = after


@others
@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_galore(shape):
    """Adam on the gradient seen along the first one's leading singular vectors; a quarter of it."""
    p, found, path = steps("galore", shape, rank=2, eps=1e-6)
    u, _, v = torch.linalg.svd(found[0], full_matrices=False)
    tall = shape[0] >= shape[1]
    basis = v[:2].t() if tall else u[:, :2]  # [short side, 2]
    seen = [g @ basis if tall else basis.t() @ g for g in found]
    for k, after in enumerate(path, 1):
        step = adam(seen[:k], 1e-6 / (1 - B2**k) ** 0.5)  # eps stands beside the uncorrected root
        p = p - 0.25 * LR * (step @ basis.t() if tall else basis @ step)
        p = p * (1 - LR * DECAY)
        assert torch.allclose(after, p, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_apollo(shape):
    """Columns of the gradient, as long as Adam on its projection makes them."""
    p = weight(*shape)
    optimizer = APOLLO([p], LR, (B1, B2), 1e-6, DECAY, rank=3, seed=5)
    start, found, before = p.detach().clone(), gradients(4, *shape), None
    seen = []
    for k, g in enumerate(found, 1):
        p.grad = g.clone()
        optimizer.step()
        wide = g.t() if shape[0] > shape[1] else g
        seen.append(optimizer.state[p]["projection"] @ wide)
        update = torch.stack(
            [
                wide[:, j] * adam(seen, 1e-6)[:, j].norm() / seen[-1][:, j].norm()
                for j in range(max(shape))
            ],
            1,
        )
        size = update.norm()
        limit = size if before is None else min(size, 1.01 * before)
        update, before = update * limit / size, limit
        start = start * (1 - LR * DECAY) - LR * (update.t() if shape[0] > shape[1] else update)
        assert torch.allclose(p, start, rtol=1e-6, atol=1e-9), k


def test_apollos_projection_is_drawn_anew_and_from_the_seed():
    drawn = []
    for seed in (0, 0, 1):
        p = weight(8, 12)
        optimizer = APOLLO([("w", p)], LR, rank=4, refresh=3, seed=seed)
        own = []
        for g in gradients(7, 8, 12):
            p.grad = g
            optimizer.step()
            own.append(optimizer.state[p]["projection"].clone())
        drawn.append(own)
    assert torch.equal(drawn[0][0], drawn[0][2])
    assert not torch.equal(drawn[0][2], drawn[0][3])
    assert not torch.equal(drawn[0][3], drawn[0][6])
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1]))
    assert not torch.equal(drawn[0][0], drawn[2][0])


@others
def test_adam_mini():
    """One second moment for each head of queries and keys, and for each of the other matrices."""
    model = tiny_models.build("llama")
    optimizer = build_optimizer("adam-mini", model, LR, betas=(B1, B2), eps=1e-6)
    draw = torch.Generator().manual_seed(1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draw)
    optimizer.step()
    size = model.config.hidden_size // model.config.num_attention_heads
    for name, p in model.named_parameters():
        g = p.grad
        moved = (before[name] - p.detach()) / (LR * g)
        if "q_proj.weight" in name or "k_proj.weight" in name:
            heads = g.view(-1, size, g.shape[1])
            wanted = heads.square().mean((1, 2), keepdim=True).rsqrt().expand_as(heads)
            wanted = wanted.reshape(g.shape)
        elif "embed" in name or "lm_head" in name:
            wanted = g.abs().reciprocal()
        else:
            wanted = g.square().mean().rsqrt().expand_as(g)
        large = g.abs() > 0.05  # below, the weight's last places drown the step
        assert torch.allclose(moved[large], wanted[large], rtol=2e-2), name
