"""The optimizers by name: they train, hold what they promise, come back from a checkpoint."""

import importlib.util
import io

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from compress.errors import RequestError, RunError
from compress.training.optimizers import OPTIMIZERS, build_optimizer, state_size
from compress.training.optimizers.grouping import sort_parameters

FACTS = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2}
FACTS |= {"num_attention_heads": 4, "num_key_value_heads": 2}
HAVE = {
    "compress": True,
    "torch": True,
    "pytorch_optimizer": importlib.util.find_spec("pytorch_optimizer") is not None,
    "bitsandbytes": importlib.util.find_spec("bitsandbytes") is not None,
}


def llama(**facts):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**FACTS, **facts))


def train(model, optimizer, steps):
    x = torch.randint(0, 128, (4, 24), generator=torch.Generator().manual_seed(3))
    losses = []
    for _ in range(steps):
        loss = model(input_ids=x, labels=x).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_trains_within_its_state_and_resumes(name):
    if not HAVE[OPTIMIZERS[name].package]:
        with pytest.raises(RequestError, match=f"needs the package `{OPTIMIZERS[name].package}`"):
            build_optimizer(name, llama(), 1e-3)
        return
    model = llama()
    optimizer = build_optimizer(name, model, 3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    losses = train(model, optimizer, 6)
    assert losses[-1] < losses[0]
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    onward = train(model, optimizer, 3)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = llama()
    again.load_state_dict(saved["model"])
    other = build_optimizer(name, again, 3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    other.load_state_dict(saved["optimizer"])
    assert train(again, other, 3) == pytest.approx(onward, rel=1e-6)


@pytest.mark.parametrize(("name", "bytes_each"), [
    ("spam", 8.0), ("stable-spam", 8.0), ("adamw", 8.0), ("adafactor", 0.2), ("muon", 4.9),
    ("lion", 4.0), ("galore", 3.0), ("apollo", 3.0), ("adam-mini", 4.9),
])  # fmt: skip
def test_state_in_bytes_a_parameter(name, bytes_each):
    if not HAVE[OPTIMIZERS[name].package]:
        pytest.skip(f"{OPTIMIZERS[name].package} isn't installed")
    model = llama()
    optimizer = build_optimizer(name, model, 1e-3)
    train(model, optimizer, 1)
    count = sum(p.numel() for p in model.parameters())
    assert state_size(optimizer) / count <= bytes_each + 0.05


def test_density_is_that_of_hidden_matrices():
    model = llama()
    optimizer = build_optimizer("spam", model, 1e-3, density=0.25)
    train(model, optimizer, 1)
    hidden = sum(p.numel() for _, p in sort_parameters(model).hidden)
    whole = sum(p.numel() for p in model.parameters())
    expected = 8 * (0.25 * hidden + whole - hidden)
    assert state_size(optimizer) == pytest.approx(expected, rel=0.02)


def test_parameters_are_sorted_by_what_they_are():
    found = sort_parameters(llama(tie_word_embeddings=True))
    assert {n.split(".")[-2] for n, _ in found.hidden} == {
        f"{kind}_proj" for kind in ("q", "k", "v", "o", "gate", "up", "down")
    }
    assert [n for n, _ in found.tables] == ["model.embed_tokens.weight"]
    assert all("norm" in n for n, _ in found.vectors)
    pairs = sort_parameters(llama().named_parameters())
    assert [n for n, _ in pairs.tables] == ["model.embed_tokens.weight", "lm_head.weight"]


def test_vectors_do_not_decay():
    optimizer = build_optimizer("adamw", llama(), 1e-3, weight_decay=0.3)
    decays = {p.ndim: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {2: 0.3, 1: 0.0}


def test_schedulers_and_groups_reach_both_parts_of_muon():
    model = llama()
    optimizer = build_optimizer("muon", model, 1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, optimizer, 2)
    scheduler.step()
    assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())


def test_a_state_larger_than_promised_ends_the_run(monkeypatch):
    if not HAVE["pytorch_optimizer"]:
        pytest.skip("pytorch_optimizer isn't installed")
    model = llama()
    optimizer = build_optimizer("galore", model, 1e-3, rank=4)
    for group in optimizer.param_groups:
        group.pop("rank", None)  # plain Adam, silently
    with pytest.raises(RunError, match="galore keeps"):
        train(model, optimizer, 1)


@pytest.mark.parametrize(("name", "options", "words"), [
    ("spamm", {}, "no optimizer `spamm`"),
    ("adamw", {"theta": 5.0}, "adamw has no option `theta`"),
    ("spam", {"density": 0.0}, "density is 0"),
    ("galore", {"rank": 0}, "rank is 0"),
    ("adamw", {"lr": 0.0}, "lr is 0"),
    ("adamw", {"weight_decay": -1.0}, "weight_decay is -1"),
])  # fmt: skip
def test_requests_that_cannot_be(name, options, words):
    with pytest.raises(RequestError, match=words):
        build_optimizer(name, llama(), **{"lr": 1e-3, **options})


def test_nothing_to_train():
    model = llama().requires_grad_(False)
    with pytest.raises(RequestError, match="no parameter to train"):
        build_optimizer("adamw", model, 1e-3)
