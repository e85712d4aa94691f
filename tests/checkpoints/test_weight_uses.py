"""What is multiplied by without its module: seen right, each expert apart, without padding."""

from __future__ import annotations

import pytest
import torch
from families import build, make_batches
from torch import nn
from walk_methods import Watcher

from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.source import open_source
from compress.checkpoints.walk import walk
from compress.checkpoints.weight_uses import Addresses, WeightUses


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Walks a family and returns (model in memory, rows by matrix)."""

    def call(kind, batches):
        place = tmp_path_factory.mktemp(kind)
        model = build(kind)
        model.save_pretrained(place)
        watcher = Watcher()
        walk(open_source(place), batches, watcher)
        rows = {n: torch.cat([i["pruned"] for i in x]) for n, x in watcher.inputs.items()}
        return model, rows

    return call


def calls(model, batches, kind):
    """Return {module: [arguments of each call]} of all modules of a class, by plain forwards."""
    found: dict[str, list] = {}
    for name, module in model.named_modules():
        if type(module).__name__ == kind:
            found[name] = []
            module.register_forward_pre_hook(
                lambda m, args, kwargs, into=found[name]: into.append([*args, *kwargs.values()]),
                with_kwargs=True,
            )
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    return found


def same(got, want):
    """Whether two sets of rows agree in number and in what they say, XᵀX.

    A sum of products is exact to a share of its terms, not of what is left of them.
    """
    if got.shape != want.shape:
        return False
    one, other = got.double().T @ got.double(), want.double().T @ want.double()
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6 * other.abs().max().item())


def padded(kind):
    """Return one batch whose second row ends in padding."""
    batch = make_batches(kind, count=1)[0]
    mask = torch.ones_like(batch["input_ids"])
    mask[1, -3:] = 0
    return {**batch, "attention_mask": mask}


@pytest.mark.parametrize("pad", [False, True], ids=["whole", "padded"])
def test_llama4s_experts_read_the_tokens_sent_to_them(pad, watched):
    batches = [padded("llama4_text")] if pad else make_batches("llama4_text")
    model, rows = watched("llama4_text", batches)
    ((name, made),) = calls(model, batches, "Llama4TextExperts").items()
    experts = model.get_submodule(name)
    keep = batches[0]["attention_mask"].flatten().bool() if pad else slice(None)
    for expert in range(4):
        own = [args[0].view(4, -1, 32)[expert][keep] for args in made]
        own = torch.cat([each[each.abs().sum(1) > 0] for each in own])
        inner = own @ experts.gate_up_proj[expert]
        gate, up = inner.chunk(2, dim=-1)
        assert same(rows[f"{name}.{expert}.gate_proj"], own)
        assert same(rows[f"{name}.{expert}.up_proj"], own)
        assert same(rows[f"{name}.{expert}.down_proj"], up * nn.functional.silu(gate))


def test_jetmoes_experts_get_their_split(watched):
    batches = make_batches("jetmoe")
    model, rows = watched("jetmoe", batches)
    found = calls(model, batches, "JetMoeParallelExperts")
    assert len(found) == 8  # two in attention and two in the MLP of each block
    for name, made in found.items():
        pieces = [torch.cat(each) for each in zip(*(a[0].split(a[1]) for a in made), strict=True)]
        for expert, piece in enumerate(pieces):
            names = [n for n in rows if n.startswith(f"{name}.{expert}")]
            assert bool(names) == bool(len(piece))
            assert all(same(rows[n], piece) for n in names)


def test_longcats_experts_get_their_tokens_and_idle_ones_none(watched):
    batches = make_batches("longcat_flash")
    model, rows = watched("longcat_flash", batches)
    for name, made in calls(model, batches, "LongcatFlashExperts").items():
        for expert in range(6):
            own = torch.cat([hidden[(top == expert).any(1)] for hidden, top, _ in made])
            got = rows.get(f"{name}.{expert}.up_proj")
            assert (got is None) == (expert > 3 or not len(own))
            assert got is None or same(got, own)


@pytest.mark.parametrize("pad", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(("kind", "mixer"), [("mamba", "MambaMixer"), ("jamba", "JambaMambaMixer")])
def test_the_time_step_of_a_state_space(kind, mixer, pad, watched):
    batches = [padded(kind)] if pad else make_batches(kind)
    model, rows = watched(kind, batches)
    outputs: dict[str, list] = {}
    names = [n for n, m in model.named_modules() if type(m).__name__ == mixer]
    for name in names:
        last = "dt_layernorm" if kind == "jamba" else "x_proj"
        outputs[name] = []
        model.get_submodule(f"{name}.{last}").register_forward_hook(
            lambda m, args, out, into=outputs[name]: into.append(out)
        )
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    keep = batches[0]["attention_mask"].bool() if pad else torch.ones(2, 12, dtype=torch.bool)
    assert names
    for name in names:
        width = model.get_submodule(f"{name}.dt_proj").in_features
        want = torch.cat([out[..., :width][keep] for out in outputs[name]])
        assert same(rows[f"{name}.dt_proj"], want)


def test_torchs_own_attention(watched):
    batches = make_batches("wavlm")
    model, rows = watched("wavlm", batches)
    for name, made in calls(model, batches, "WavLMAttention").items():
        want = torch.cat([args[0].flatten(0, 1) for args in made])
        for leaf in "qkv":
            assert same(rows[f"{name}.{leaf}_proj"], want)
        assert rows[f"{name}.out_proj"].shape == want.shape


def test_a_module_that_is_called_counts_once(watched):
    batches = make_batches("llama")
    model, rows = watched("llama", batches)
    assert set(rows) == {matrix.name for matrix in read_anatomy(model).matrices}
    assert {len(each) for each in rows.values()} == {2 * 2 * 12}


def test_uses_are_known_by_their_place_in_memory():
    one, two = torch.randn(4, 4), torch.randn(4, 4)
    addresses = Addresses({"one": one, "two": two, "away": torch.empty(2, 2, device="meta")})
    assert addresses.find(one[2:].T) == "one"
    assert addresses.find(two) == "two"
    assert addresses.find(torch.randn(4, 4)) is None
    assert addresses.find(3) is None
    seen = []
    with WeightUses(addresses.find, lambda *use: seen.append(use)):
        torch.randn(2, 4) @ one.T
        torch.cat([two, torch.zeros(1, 4)])
    (name, operation, product), (other, *_) = [use for use in seen if use[1] in {"mm", "cat"}]
    assert (name, operation, other) == ("one", "mm", "two")
    assert torch.equal(product.weight, one)
    assert all(use[2] is None for use in seen if use[1] != "mm")  # views and copies
