"""Spikes are counted by the rule, whatever the route, and what is put in is found."""

import json
import math
import shutil

import pytest
import torch
from torch import nn

from compress.errors import RequestError
from compress.training import spikes
from compress.training.command import train_spam
from compress.training.display import read_metrics
from compress.training.injecting import KINDS, Injection, parse_injection
from compress.training.optimizers import native
from compress.training.spikes import SpikeMonitor


class Net(nn.Module):
    """Parameters of several shapes: one entry, a vector, a matrix."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(1))
        self.b = nn.Parameter(torch.zeros(7))
        self.c = nn.Parameter(torch.zeros(40, 33))


def gradients(steps, seed=0, spiky=0.02):
    """Gradients of each step, by name, some entries far too large and some always zero."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {name: p.shape for name, p in Net().named_parameters()}
    dead = {name: torch.rand(shape, generator=draw) < 0.2 for name, shape in shapes.items()}
    for step in range(steps):
        found = {}
        for name, shape in shapes.items():
            g = torch.randn(shape, generator=draw)
            g = torch.where(torch.rand(shape, generator=draw) < spiky, 500 * g, g)
            found[name] = torch.where(dead[name] & (step < 30), 0.0, g)
        yield found


def show(monitor, found, model=None):
    model = Net() if model is None else model
    for name, p in model.named_parameters():
        p.grad = found[name].to(p.dtype)
    monitor(model, 0)


def slow_counts(steps, theta, beta, settle):
    """The rule, entry by entry, in float64."""
    means, counts, largest = {}, {}, {}
    for t, found in enumerate(gradients(steps)):
        for name, gradient in found.items():
            entries = gradient.flatten().double().tolist()
            v = means.setdefault(name, [0.0] * len(entries))
            for i, g in enumerate(entries):
                entering = g * g
                if t >= settle and v[i] > 0:
                    usual = v[i] / (1 - beta**t)
                    largest[name] = max(largest.get(name, 0.0), g * g / usual)
                    if g * g > theta * usual:
                        counts[name] = counts.get(name, 0) + 1
                        entering = theta * usual
                v[i] = beta * v[i] + (1 - beta) * entering
    return counts, largest


@pytest.fixture(params=["native", "quiet", "whole", "kernel"])
def route(request, monkeypatch):
    """In native code; part by part with the short cut, or without it as on a GPU; the kernel."""
    if request.param == "native":
        if isinstance(native._load(), str):
            pytest.skip(f"no compiler here: {native._load()}")
        return request.param
    monkeypatch.setattr(native, "_load", lambda: "left out")
    if request.param == "whole":
        monkeypatch.setattr(spikes, "_quiet_part", lambda *_: None)
    monkeypatch.setattr(spikes, "_CHUNK", 100)
    if request.param == "kernel":
        monkeypatch.setattr(spikes.Engine, "fast", lambda *_: True)
    return request.param


@pytest.mark.parametrize(("theta", "beta"), [(5000.0, 0.999), (30.0, 0.9)])
def test_counts_are_those_of_the_rule(theta, beta, route):
    monitor = SpikeMonitor(theta, beta=beta, settle=5)
    for found in gradients(60):
        show(monitor, found)
    told = monitor.receipt()
    counts, largest = slow_counts(60, theta, beta, 5)
    assert sum(counts.values()) > 20
    assert {n: e["count"] for n, e in told["by_parameter"].items()} == counts
    for name, entry in told["by_parameter"].items():
        assert entry["largest_ratio"] == pytest.approx(largest[name], rel=1e-3)
    assert told["count"] == sum(counts.values())
    assert told["watched_steps"] == 55
    assert told["state_bytes"] == 4 * (1 + 7 + 40 * 33)


def test_an_entry_without_a_usual_size_is_no_spike(route):
    monitor = SpikeMonitor(settle=2)
    zeros = {name: torch.zeros_like(p) for name, p in Net().named_parameters()}
    for _ in range(5):
        show(monitor, zeros)
    show(monitor, {name: torch.full_like(g, 1e6) for name, g in zeros.items()})
    assert monitor.receipt()["count"] == 0
    for _ in range(9):
        show(monitor, {name: torch.ones_like(g) for name, g in zeros.items()})
    assert monitor.receipt()["count"] == 0


def test_one_spike_does_not_hide_the_next(route):
    """Uncut, the first would lift the mean, and the limit with it, ten thousandfold."""
    monitor = SpikeMonitor(beta=0.99, settle=5)
    ones = {name: torch.ones_like(p) for name, p in Net().named_parameters()}
    for step in range(110):
        factor = 1000.0 if step in (100, 101) else 1.0
        show(monitor, {name: factor * g for name, g in ones.items()})
    told = monitor.receipt()
    assert told["steps"] == 2
    assert told["count"] == 2 * (1 + 7 + 40 * 33)
    assert told["by_parameter"]["b"]["largest_ratio"] == pytest.approx(1e6, rel=1e-3)


def test_reports_tell_what_is_new():
    monitor = SpikeMonitor(settle=1)
    ones = {name: torch.ones_like(p) for name, p in Net().named_parameters()}
    for factor in (1.0, 1.0, 1000.0):
        show(monitor, {name: factor * g for name, g in ones.items()})
    assert monitor.report() == {
        "spikes": 1328, "spike_steps": 1, "spikes_in": {"a": 1, "b": 7, "c": 1320},
    }  # fmt: skip
    show(monitor, ones)
    assert monitor.report() == {"spikes": 1328, "spike_steps": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_are_only_read_and_means_are_float32(dtype):
    monitor, model = SpikeMonitor(settle=1), Net().to(dtype)
    for found in gradients(5):
        show(monitor, found, model)
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, found[name].to(dtype))
    assert {m.dtype for m in monitor.state_dict()["means"].values()} == {torch.float32}


def test_parameters_without_a_gradient_are_left_out():
    monitor, model = SpikeMonitor(settle=1), Net()
    model.b.requires_grad_(False)
    for _ in range(3):
        model.c.grad = torch.ones_like(model.c)
        monitor(model, 0)
    model.a.grad = torch.ones_like(model.a)
    model.c.grad = 1e3 * torch.ones_like(model.c)
    monitor(model, 0)
    assert list(monitor.receipt()["by_parameter"]) == ["c"]


def test_counting_goes_on_from_a_state(tmp_path):
    whole, half = SpikeMonitor(30.0, settle=5), SpikeMonitor(30.0, settle=5)
    for step, found in enumerate(gradients(40)):
        show(whole, found)
        if step == 17:
            torch.save(half.state_dict(), tmp_path / "spikes.pt")
            half = SpikeMonitor(30.0, settle=5)
            half.load_state_dict(torch.load(tmp_path / "spikes.pt", weights_only=True))
        show(half, found)
    assert whole.receipt() == half.receipt()
    assert whole.receipt()["count"] > 20
    means = [monitor.state_dict()["means"] for monitor in (whole, half)]
    assert all(torch.equal(means[0][name], means[1][name]) for name in means[0])


# In a run


def outcome(place):
    entry = json.loads((place / "receipt.json").read_text())["training"]
    return entry, (place / "model.safetensors").read_bytes()


@pytest.fixture
def spiky(options):
    return {**options, "steps": 12, "warmup": 0.0, "save_every": 4, "max_grad_norm": 1.0}


def test_watching_changes_nothing(config, spiky, tmp_path):
    found = [
        outcome_of(config, tmp_path / str(watched), spikes=watched, **spiky)
        for watched in (None, True, False)
    ]
    assert found[0][1] == found[1][1] == found[2][1]
    assert [entry["loss"] for entry, _ in found[1:]] == [found[0][0]["loss"]] * 2
    assert "spikes" not in found[2][0]
    assert found[0][0]["spikes"] == found[1][0]["spikes"]
    assert found[0][0]["spikes"]["count"] == 0


def outcome_of(config, place, **options):
    train_spam(config, place, **options)
    return outcome(place)


def patched(monkeypatch, settle=3):
    real = SpikeMonitor.__init__

    def start(self, *args, **kwargs):
        real(self, *args, **{**kwargs, "settle": settle})

    monkeypatch.setattr(SpikeMonitor, "__init__", start)


@pytest.mark.parametrize("micro", [1, 4])
def test_what_is_put_in_is_found(micro, config, spiky, tmp_path, monkeypatch):
    """A whole gradient times 1000 in one step, seen before it is clipped, once per step."""
    patched(monkeypatch)
    monkeypatch.setattr(Injection, "hits", lambda self, step: step == 8)
    own = {**spiky, "micro_batch": micro, "inject_spikes": "global:0.3:1000"}
    done = train_spam(config, tmp_path / "out", **own)
    entry, _ = outcome(tmp_path / "out")
    assert entry["injected"] == {
        "kind": "global", "share": 0.3, "factor": 1000.0, "start": 0, "seed": 0, "steps": 1,
    }  # fmt: skip
    logs = [e for e in read_metrics(tmp_path / "out" / "metrics.jsonl") if "loss" in e]
    new = {e["step"] - 1: sum(e.get("spikes_in", {}).values()) for e in logs}
    assert {step for step, count in new.items() if count > 1000} == {8}  # rare tokens have some
    assert sum(new.values()) == entry["spikes"]["count"] == logs[-1]["spikes"]
    assert sum(count > 0 for count in new.values()) == entry["spikes"]["steps"]
    assert entry["spikes"]["watched_steps"] == 9
    shown = done.render()
    assert "spikes put in" in shown
    assert f"{entry['spikes']['count']:,}" in shown
    assert "most in " in " ".join(shown.split())


def test_a_resumed_run_counts_what_the_other_counts(config, spiky, tmp_path, monkeypatch):
    patched(monkeypatch)
    own = {**spiky, "inject_spikes": "noise:0.4:1000"}
    whole = outcome_of(config, tmp_path / "whole", **own)
    from compress.training import finishing

    with monkeypatch.context() as patch:
        patch.setattr(finishing, "save_model", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_spam(config, tmp_path / "half", **own)
    saved = tmp_path / "half.partial" / "checkpoints" / "checkpoint-12"
    shutil.rmtree(saved)  # as if killed between steps 8 and 12
    train_spam(config, tmp_path / "half", resume=True, **own)
    half = outcome(tmp_path / "half")
    assert half[0]["spikes"] == whole[0]["spikes"]
    assert half[0]["spikes"]["count"] > 0
    assert half[1] == whole[1]
    steps = [
        [(e["step"], e["spikes"]) for e in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "half")
    ]
    assert steps[0] == steps[1]


# What is put in


def grads_of(injection, step, value=1.0):
    model = Net()
    for p in model.parameters():
        p.grad = torch.full_like(p, value)
    injection(model, step)
    return [p.grad for p in model.parameters()]


def first_hit(injection):
    return next(step for step in range(10_000) if injection.hits(step))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_what_it_says(kind):
    injection = Injection(kind, 0.1, 100.0, 0, 3)
    step = first_hit(injection)
    found = grads_of(injection, step)
    if kind == "global":
        assert all(torch.equal(g, torch.full_like(g, 100.0)) for g in found)
        return
    changed = [int((g != 1).sum()) for g in found]
    whole = [g.numel() for g in found]
    if kind == "noise":
        assert changed == whole
        assert float((found[2] - 1).std()) == pytest.approx(100.0, rel=0.1)
    elif kind == "layer":
        assert sum(c > 0 for c in changed) == 1
        assert all(c in (0, w) for c, w in zip(changed, whole))
    else:
        assert changed[2] == pytest.approx(0.01 * whole[2], abs=3 * math.sqrt(0.01 * whole[2]))


@pytest.mark.parametrize("kind", KINDS)
def test_spikes_depend_on_seed_and_step_alone(kind):
    injection = Injection(kind, 0.1, 100.0, 0, 3)
    step = first_hit(injection)
    torch.manual_seed(1)
    one = grads_of(injection, step)
    torch.manual_seed(2)
    two = grads_of(injection, step)
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    other = Injection(kind, 0.1, 100.0, 0, 4)
    assert [injection.hits(s) for s in range(200)] != [other.hits(s) for s in range(200)]
    quiet = next(s for s in range(100) if not injection.hits(s))
    assert all(torch.equal(g, torch.ones_like(g)) for g in grads_of(injection, quiet))


def test_the_share_is_of_the_steps_after_the_start():
    injection = Injection("global", 0.25, 10.0, 500, 0)
    assert not any(injection.hits(step) for step in range(500))
    assert injection.count(4500) == pytest.approx(1000, abs=4 * math.sqrt(1000 * 0.75))


def test_what_is_left_out_has_a_default():
    assert parse_injection("noise") == Injection("noise", 0.02, 1000.0)
    assert parse_injection("layer") == Injection("layer", 0.1, 1000.0)
    assert parse_injection("layer:0.5:20", 30, 7) == Injection("layer", 0.5, 20.0, 30, 7)


@pytest.mark.parametrize(
    "text", ["", "noises", "noise:x", "noise:0", "noise:2", "noise:0.1:-1", "noise:.1:9:9", ":"]
)
def test_what_cannot_be_put_in(text):
    with pytest.raises(RequestError, match="--inject-spikes"):
        parse_injection(text)
