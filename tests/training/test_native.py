"""Native passes against plain operations of the kernels: equal to the last bit, odd values too."""

import math
import shutil
from unittest import mock

import numpy as np
import pytest
import torch

from compress.training.optimizers import kernels, native
from compress.training.spikes import watch

pytestmark = pytest.mark.skipif(isinstance(native._load(), str), reason=f"{native._load()}")

DTYPES = [(torch.float32,) * 2, (torch.float64,) * 2, (torch.float32, torch.bfloat16)]
SIZES = (2, 63, 64, 65, 1000, 4096, 20_000)
ODD = (0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, math.inf, -math.inf, math.nan)


def tensors(sizes, state, gradient, odd=ODD):
    """Weights, gradients, moments: many spikes, dead entries, values that aren't numbers."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for size in sizes:
        p, g, m = (torch.randn(size, generator=draw, dtype=torch.float64) for _ in range(3))
        v = torch.rand(size, generator=draw, dtype=torch.float64)
        spikes = torch.rand(size, generator=draw) < 0.01
        g = torch.where(spikes, 300.0 * g, g)
        dead = torch.rand(size, generator=draw) < 0.1
        m, v = m.masked_fill(dead, 0.0), v.masked_fill(dead, 0.0)
        if size > 10 * len(odd):  # some tiles keep ordinary values
            places = torch.randperm(size, generator=draw)[: len(odd)]
            g[places] = torch.tensor(odd, dtype=torch.float64)
        found.append([p.to(state), g.to(gradient), m.to(state), v.to(state)])
    return found


def scalars(state, **changed):
    row = [0.01, 1.1, 1e-6, 0.999, 0.9999, 0.1, 0.001, 10.0, math.inf, 0.7, 1.0]
    for name, value in changed.items():
        row[getattr(kernels, name)] = value
    return torch.tensor(row, dtype=state)


def copies(lists):
    return [[t.clone() for t in some] for some in lists]


def rounded_root(tensor):
    """sqrt as IEEE 754 has it: torch's own, by MKL, misses one last bit in a hundred."""
    return torch.from_numpy(np.sqrt(tensor.numpy()))


def both(kernel, lists):
    """What a kernel writes, by plain operations and natively."""
    plain, own = copies(lists), copies(lists)
    with mock.patch.object(torch.Tensor, "sqrt", rounded_root):
        for arguments in zip(*plain):
            kernel(*arguments)
    native.run(kernel.__name__, own, *kernels._NATIVE[kernel.__name__])
    return plain, own


def assert_equal(plain, own):
    for one, two in zip(plain, own):
        for a, b in zip(one, two):
            assert torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7))


@pytest.mark.parametrize(("state", "gradient"), DTYPES)
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"CLIP": math.inf},
        {"CLIP": math.inf, "CAP": 2.0},
        {"CLIP": 0.5, "CAP": 1.0},
        {"CLIP": 1e25},
    ],
)
def test_spam(state, gradient, changed):
    lists = list(zip(*tensors(SIZES, state, gradient)))
    rows = [scalars(state, **changed) for _ in SIZES]
    plain, own = both(kernels.spam, [*lists, rows])
    assert_equal(plain, own)
    moved = [not torch.equal(a, b) for a, b in zip(own[0], lists[0])]
    assert all(moved)


@pytest.mark.parametrize(("state", "gradient"), DTYPES)
@pytest.mark.parametrize("changed", [{}, {"CLIP": math.inf, "CAP": 2.0}, {"CLIP": 0.5}])
def test_counting_what_spam_cuts(state, gradient, changed):
    found = tensors(SIZES, state, gradient)
    rows = [scalars(state, **changed) for _ in SIZES]
    counts = [torch.zeros((), dtype=torch.int64) for _ in SIZES]
    lists = [[some[1] for some in found], [some[3] for some in found], rows, counts]
    plain, own = both(kernels.spam_count, lists)
    assert [int(c) for c in own[3]] == [int(c) for c in plain[3]]
    assert sum(int(c) for c in own[3]) > 100


@pytest.mark.parametrize(("state", "gradient"), DTYPES)
def test_spam_on_blocks(state, gradient):
    found = tensors((640, 64), state, gradient)
    chosen = [torch.tensor([0, 3, 4]), torch.tensor([1])]
    whole = [[t.view(-1, 32) for t in some] for some in found]
    lists = [
        [some[0] for some in whole],
        [some[1] for some in whole],
        *([some[k][: len(blocks)].clone() for some, blocks in zip(whole, chosen)] for k in (2, 3)),
        [scalars(state), scalars(state, CLIP=2.0)],
        chosen,
    ]
    plain, own = both(kernels.spam_blocks, lists)
    assert_equal(plain, own)
    still = torch.ones(20, dtype=torch.bool)
    still[chosen[0]] = False
    assert torch.equal(own[0][0][still], whole[0][0][still])


@pytest.mark.parametrize(("state", "gradient"), DTYPES)
@pytest.mark.parametrize("kernel", [kernels.stable_scale, kernels.stable_clamp])
def test_stable_spam(kernel, state, gradient):
    lists = list(zip(*tensors(SIZES, state, gradient, odd=(0.0, -0.0, 1e-30, 1e10))))
    rows = [scalars(state, CLIP=1.5, CAP=0.01) for _ in SIZES]
    rows[3][kernels.TAKEN] = 0.0
    plain, own = both(kernel, [*lists, rows])
    assert_equal(plain, own)
    assert torch.equal(own[0][3], lists[0][3])


@pytest.mark.parametrize(("state", "gradient"), DTYPES[::2])
@pytest.mark.parametrize("limit", [50.0, 5000.0, math.inf])
def test_the_spike_monitor(state, gradient, limit):
    found = tensors(SIZES, state, gradient, odd=(0.0, -0.0, 1e-30, 1e10))
    rows = [scalars(state, RATE=limit, ROOT=0.001) for _ in SIZES]
    counts, ratios = ([torch.zeros(kernels.SCALARS) for _ in SIZES] for _ in range(2))
    lists = [[s[1] for s in found], [s[3] for s in found], rows, counts, ratios]
    plain, own = both(watch, lists)
    assert_equal(plain[:2], own[:2])
    for k in (3, 4):  # the plain kernel fills the whole of these, the native one the first entry
        assert [float(t[0]) for t in own[k]] == [float(t[0]) for t in plain[k]]
    assert (sum(float(t[0]) for t in own[3]) > 0) == (limit < math.inf)


@pytest.mark.parametrize("kernel", [kernels.spam, kernels.stable_scale])
def test_threads_change_no_bit(kernel):
    sizes = (700_001, 3, 400_000)
    lists = list(zip(*tensors(sizes, torch.float32, torch.float32, odd=())))
    lists.append([scalars(torch.float32, CLIP=1.5, CAP=0.01) for _ in sizes])
    one, three = copies(lists), copies(lists)
    native.run(kernel.__name__, one, 2, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        native.run(kernel.__name__, three, 2, 1)
    finally:
        torch.set_num_threads(before)
    assert_equal(one, three)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("clamp", [True, False])
def test_rows_are_reduced_and_read_again_where_they_must(dtype, clamp):
    draw = torch.Generator().manual_seed(3)
    gradients = [torch.randn(n, generator=draw).to(dtype) for n in (5, 4096, 4097, 30_000)]
    gradients.insert(2, torch.zeros(0, dtype=dtype))
    state = torch.float64 if dtype == torch.float64 else torch.float32
    rows = native.RowStatistics(gradients, state)
    assert rows.largest.tolist() == [float(g.abs().max()) if g.numel() else 0.0 for g in gradients]
    limit = torch.tensor([0.5, 2.0, 1.0, 100.0, 2.5], dtype=torch.float64)
    factor = torch.full_like(limit, 0.25)
    found = rows.squares_after(limit, factor, clamp=clamp)
    for g, top, own in zip(gradients, limit, found):
        size = g.double().abs()
        cut = size.clamp(max=top) if clamp else torch.where(size > top, size * 0.25, size)
        assert float(own) == pytest.approx(float((cut * cut).sum()), rel=1e-6)


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_the_largest(wrong):
    gradients = [torch.ones(9000), torch.ones(9000)]
    gradients[1][4500] = wrong
    largest = native.RowStatistics(gradients, torch.float32).largest
    assert float(largest[0]) == 1.0
    assert not math.isfinite(float(largest[1]))


def compiler(place, script):
    """A compiler that is a shell script; the real one is "$REAL"."""
    path = place / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "native"


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path, cache):
    broken = compiler(tmp_path, "echo 'fatal error: no such header' >&2\nexit 1")
    monkeypatch.setenv("CXX", broken)
    assert native._load.__wrapped__() == "fatal error: no such header"
    assert not cache.exists()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native._load.__wrapped__() == "no C++ compiler was found"


def test_it_is_built_once_for_a_compiler_and_what_is_damaged_is_built_anew(
    monkeypatch, tmp_path, cache
):
    calls = tmp_path / "calls"
    counted = compiler(tmp_path, f'echo "$1" >> {calls}; exec {shutil.which("c++")} "$@"')
    monkeypatch.setenv("CXX", counted)
    kept = cache / f"{native._key([counted])}.so"
    cache.mkdir(parents=True)
    kept.write_bytes(b"damaged")
    for _ in range(2):
        assert not isinstance(native._load.__wrapped__(), str)
    asked = calls.read_text().split()
    assert len(asked) - asked.count("--version") == 1
    assert [*cache.iterdir()] == [kept]
    assert kept.read_bytes() != b"damaged"


def test_where_nothing_can_be_kept_it_is_built_all_the_same(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "file"))
    assert not isinstance(native._load.__wrapped__(), str)
