"""Step time and state of optimizers, against torch's fused AdamW on the same parameters.

    python benchmarks/training/step_time.py [--device cuda] [--rounds 25] [--only NAMES]
    python benchmarks/training/step_time.py --quick      a small model, to see that it runs

Writes step_time.json, or step_time-DEVICE.json, and prints the table. Parameters are those of a
Llama of 20 million (75 tensors), on a GPU of 201 million, in float32. Each round steps every
optimizer in turn, beginning with another one each time, on its own copy of the weights and on one
of three sets of gradients (normal, a few entries a hundred times as large), so a drift of the
machine's speed falls on all; a ratio is the median over rounds of its time over that of fused
AdamW in the same round. CPU: one thread, time of this thread, so that waiting for a shared core
doesn't count. GPU: device events.

"floor" beside a method: bytes that it must move, over those of AdamW. AdamW reads p, g, m, v and
writes p, m, v: 28 bytes a parameter in float32. SPAM the same. Stable-SPAM reads g once more for
its largest entry, and for its norm again, where entries above the limit change it: 32 to 36.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from compress.training.optimizers import SPAM, StableSPAM, build_optimizer, state_size
from compress.training.optimizers.grouping import sort_parameters

BASE = "torch AdamW, fused"
SIZES = {  # vocabulary, hidden, mlp, heads, layers: 9 tensors a layer, and 3
    "quick": (512, 64, 172, 4, 2),
    "cpu": (8000, 384, 1024, 6, 8),
    "cuda": (32000, 1024, 2736, 16, 12),
}
Maker = Callable[[nn.Module], torch.optim.Optimizer]


def model_of(size: str, device: str) -> LlamaForCausalLM:
    """The weights that are stepped."""
    vocabulary, hidden, mlp, heads, layers = SIZES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=mlp,
        num_attention_heads=heads, num_key_value_heads=heads, num_hidden_layers=layers,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device)


def _hidden(model: nn.Module, **options: Any) -> list[dict[str, Any]]:
    return sort_parameters(model).groups(0.0, **options)


def _named(name: str, **options: Any) -> Maker:
    return lambda model: build_optimizer(name, model, 1e-4, **options)


def _torch(**options: Any) -> Maker:
    return lambda model: torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.0, **options)


def _peer(kind: str) -> Maker:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        import pytorch_optimizer

        return getattr(pytorch_optimizer, kind)(model.parameters(), lr=1e-4)

    return make


def _logging(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = SPAM(_hidden(model), 1e-4, compile=True)
    optimizer.counting = True
    return optimizer


class Reading:
    """No optimizer: sums the gradients, so that it does nothing but read them once."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.state: dict[Any, Any] = {}

    def step(self) -> None:
        """Read."""
        for p in self.parameters:
            assert p.grad is not None
            p.grad.sum()


ARMS: dict[str, Maker] = {
    BASE: _torch(fused=True),
    "(the gradients read once)": Reading,  # type: ignore[dict-item]
    "torch AdamW, foreach": _torch(foreach=True),
    "torch AdamW, a loop": _torch(foreach=False),
    "SPAM, compiled": lambda m: SPAM(_hidden(m), 1e-4, compile=True),
    "SPAM, no compiler": lambda m: SPAM(_hidden(m), 1e-4, compile=False),
    "SPAM, compiled, counting spikes": _logging,
    "SPAM density 0.25, compiled": lambda m: SPAM(_hidden(m, density=0.25), 1e-4, compile=True),
    "SPAM density 0.25, no compiler": lambda m: SPAM(_hidden(m, density=0.25), 1e-4, compile=False),
    "Stable-SPAM, compiled": lambda m: StableSPAM(_hidden(m), 1e-4, compile=True),
    "Stable-SPAM, no compiler": lambda m: StableSPAM(_hidden(m), 1e-4, compile=False),
    "pytorch_optimizer SPAM": _peer("SPAM"),
    "pytorch_optimizer StableSPAM": _peer("StableSPAM"),
    "adafactor": _named("adafactor"),
    "muon": _named("muon"),
    "lion": _named("lion"),
    "galore": _named("galore"),
    "apollo": _named("apollo"),
    "adam-mini": _named("adam-mini"),
}
FLOORS = {  # bytes a parameter moved at least; None: not bound by memory
    BASE: (28, 28),
    "SPAM, compiled": (28, 28),
    "Stable-SPAM, compiled": (32, 36),
}
SLOW = ("pytorch_optimizer SPAM", "pytorch_optimizer StableSPAM", "galore", "apollo", "muon")


def gradients_of(model: nn.Module, sets: int = 3) -> list[list[Tensor]]:
    """Sets of gradients, one entry in 10,000 a hundred times as large."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(1)
    found = []
    for _ in range(sets):
        some = []
        for p in model.parameters():
            g = torch.randn(p.shape, generator=generator, device=device) * 1e-3
            spike = torch.rand(p.shape, generator=generator, device=device) < 1e-4
            some.append(torch.where(spike, 100 * g, g))
        found.append(some)
    return found


class Stepper:
    """An optimizer on its own copy of the weights."""

    def __init__(self, name: str, size: str, device: str) -> None:
        self.name, self.model = name, model_of(size, device)
        self.parameters = list(self.model.parameters())
        self.optimizer = ARMS[name](self.model)
        self.seconds: list[float] = []

    def step(self, gradients: list[Tensor], *, timed: bool = True) -> None:
        """Take one step and time it."""
        for p, g in zip(self.parameters, gradients):
            p.grad = g
        spent = _seconds(self.optimizer.step, gradients[0].device)
        if timed:
            self.seconds.append(spent)
        for p in self.parameters:
            p.grad = None

    def state_bytes(self) -> int:
        """Bytes of state after the steps taken."""
        return state_size(self.optimizer)


def _seconds(step: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    began = time.thread_time()
    step()
    return time.thread_time() - began


def compare(names: list[str], size: str, device: str, rounds: int) -> dict[str, Any]:
    """Step every optimizer in turns; a figure for each."""
    gradients = gradients_of(model_of(size, device))
    steppers = []
    for name in names:
        stepper = Stepper(name, size, device)
        began = time.perf_counter()
        for k in range(3):  # compiles, and makes the state
            stepper.step(gradients[k % len(gradients)], timed=False)
        print(f"{name}: ready after {time.perf_counter() - began:.1f} s", flush=True)
        steppers.append(stepper)
    gc.collect()
    for turn in range(rounds):
        first = turn % len(steppers)
        for stepper in steppers[first:] + steppers[:first]:
            if stepper.name in SLOW and turn >= 7:
                continue
            stepper.step(gradients[turn % len(gradients)])
    base = next(stepper for stepper in steppers if stepper.name == BASE)
    return {stepper.name: figures(stepper, base) for stepper in steppers}


def figures(stepper: Stepper, base: Stepper) -> dict[str, Any]:
    """Median time, its ratio to the base's with quartiles, and the state."""
    ratios = sorted(own / other for own, other in zip(stepper.seconds, base.seconds))
    quarter = len(ratios) // 4
    count = sum(p.numel() for p in stepper.parameters)
    engine = getattr(stepper.optimizer, "_engine", None)
    found = {
        "milliseconds": round(1e3 * statistics.median(stepper.seconds), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)],
        "rounds": len(ratios),
        "state_bytes": stepper.state_bytes(),
        "state_bytes_a_parameter": round(stepper.state_bytes() / count, 3),
    }
    if stepper.name in FLOORS:
        found["floor"] = [round(moved / 28, 3) for moved in FLOORS[stepper.name]]
    if engine is not None and engine.fault is not None:
        found["not_compiled"] = engine.fault
    return found


def table(arms: dict[str, Any]) -> str:
    """A line an optimizer, in Markdown."""
    rows = ["| optimizer | ms | ratio | quartiles | floor | bytes of state a parameter |",
            "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for name, arm in arms.items():
        low, high = arm["ratio_quartiles"]
        floor = " to ".join(f"{x:.2f}" for x in dict.fromkeys(arm.get("floor", [])))
        rows.append(
            f"| {name} | {arm['milliseconds']:.1f} | {arm['ratio']:.2f} | {low:.2f} to {high:.2f} "
            f"| {floor} | {arm['state_bytes_a_parameter']:.2f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--only", help="names that begin so, comma separated")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kind = torch.device(options.device).type
    size = "quick" if options.quick else kind
    only = tuple(options.only.split(",")) if options.only else ("",)
    names = [name for name in ARMS if name == BASE or name.startswith(only)]
    arms = compare(names, size, options.device, 3 if options.quick else options.rounds)
    model = model_of(size, "cpu")
    machine = torch.cuda.get_device_name() if kind == "cuda" else platform.machine()
    result = {
        "device": machine, "threads": 1, "dtype": "float32",
        "parameters": model.num_parameters(), "tensors": len(list(model.parameters())),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "arms": arms,
    }  # fmt: skip
    print(table(arms))
    stem = "step_time" if kind == "cpu" else f"step_time-{kind}"
    if options.output or not (options.quick or options.only):
        target = options.output or Path(__file__).with_name(f"{stem}.json")
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
