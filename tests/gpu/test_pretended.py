"""What a GPU would refuse, found without one: a device that calls itself CUDA (pretend_cuda).

Its values are the CPU's. Tensors must not meet those of the CPU, and the host must not wait for the
device once a column, a row or a token.
"""

import contextlib

import pytest
import torch
from pretend_cuda import OnCuda, pretend
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

import compress
from compress.numerics.select import keep_n_of_m
from compress.sparsity.sparsegpt import sparsegpt
from compress.training import SPAM, StableSPAM
from tiny_models import make_checkpoint

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")
WORDS = "the old boat lay by the pier and nobody came to mend it before the winter storms began "


def test_the_pretended_device_refuses_what_a_real_one_does():
    with pretend() as reads:
        a = torch.arange(6.0, device="cuda").view(2, 3)
        assert a.is_cuda
        assert isinstance(a @ a.t(), OnCuda)
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            a + torch.ones(2, 3)
        with pytest.raises((RuntimeError, TypeError)):
            a.numpy()
        with pytest.raises(RuntimeError, match="a generator of the CPU"):
            torch.rand(2, device="cuda", generator=torch.Generator())
        assert (a + 1).cpu().sum() == 21
        before = sum(reads.values())
        assert float(a[1, 2]) == 5.0
        assert sum(reads.values()) > before


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint("llama", tmp_path_factory.mktemp("m") / "llama", dtype=torch.float32)


CASES = {
    "magnitude": {"method": "magnitude", "allocation": "global"},
    "farms": {"method": "magnitude", "allocation": "farms"},
    "sparsegpt": {"method": "sparsegpt", "allocation": "uniform"},
    "alps": {"method": "alps", "allocation": "uniform"},
    "wanda": {"method": "wanda", "allocation": "owl"},
    "dsnot": {"method": "dsnot", "allocation": "uniform"},
    "permuted": {"method": "ria", "pattern": "2:4", "channel_permutation": True},
    "cg": {"method": "wanda", "refit": "cg", "allocation": "uniform"},
}


@pytest.mark.parametrize("case", CASES)
def test_pruning_there_mixes_no_devices(case, model, tmp_path):
    """Every tensor lies where it is used, and the result is the CPU's to the last bit."""
    text = tmp_path / "calib.txt"
    text.write_text("".join(f"{i}: {WORDS[i % 40 :]}{WORDS}\n" for i in range(99)))
    given = {"calib": str(text), "samples": 3, "seqlen": 24, **CASES[case]}
    found = {}
    for device, place in (("cpu", contextlib.nullcontext()), ("cuda", pretend())):
        with sdpa_kernel(SDPBackend.MATH), place:  # each device has fused kernels of its own
            compress.alpha_prune(model, tmp_path / device, device=device, **given)
        found[device] = load_file(tmp_path / device / "model.safetensors")
    pairs = [(found["cuda"][name], value) for name, value in found["cpu"].items()]
    assert all(torch.equal(there, here) for there, here in pairs)


def test_the_host_does_not_wait_for_every_group_of_columns():
    draw = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(8, 128, generator=draw), torch.randn(256, 128, generator=draw)
    hessian = inputs.t() @ inputs
    expected = sparsegpt(weight, hessian, None, (2, 4))
    with pretend() as reads:
        found = sparsegpt(weight.cuda(), hessian.cuda(), None, (2, 4))
        assert torch.equal(found.weight.cpu(), expected.weight)
        waits = {name: n for name, n in reads.items() if "scalar" in name or "nonzero" in name}
    assert sum(waits.values()) < 32  # there are 32 groups
    assert torch.equal(expected.mask, expected.weight != 0)
    assert torch.equal(keep_n_of_m(weight, 2, 4, checked=True), keep_n_of_m(weight, 2, 4))


OPTIMIZERS = {
    "spam": (SPAM, {"theta": 4.0, "reset_every": 7, "reset_warmup": 2, "settle": 2}),
    "sparse spam": (SPAM, {"theta": 4.0, "reset_every": 7, "reset_warmup": 2, "density": 0.5}),
    "stable-spam": (StableSPAM, {"reset_every": 7, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_there_waits_for_nothing(name):
    """Steps read nothing back, once the first ones have made their state."""
    kind, options = OPTIMIZERS[name]
    draw = torch.Generator().manual_seed(0)
    shapes = [(48, 64), (64,), (33, 257)]
    with pretend() as reads:
        parameters = [torch.randn(*s, generator=draw).to("cuda") for s in shapes]
        optimizer = kind(parameters, lr=0.01, compile=False, **options)
        for step in range(12):
            for parameter, shape in zip(parameters, shapes):
                parameter.grad = torch.randn(*shape, generator=draw).to("cuda")
            before = dict(reads)
            optimizer.step()
            if step > 1:
                waited = {n: c - before.get(n, 0) for n, c in reads.items() if c > before.get(n, 0)}
                assert not {n: c for n, c in waited.items() if "scalar" in n or "_to_copy" in n}
