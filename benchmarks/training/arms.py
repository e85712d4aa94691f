"""The arms of the grid: what each run trains, and where its learning rate comes from.

A run is an arm and a seed. Options are those of compress.train_spam, train_meap and train_mixln.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SEEDS = (0, 1, 2)
SWEEP_SEED = 100
STEPS, BATCH = 400, 8

# The papers' 500 steps between resets, 150 of warm-up and 20 without clipping (of 10,000 steps and
# more), brought to runs of 400 steps.
SPAM: dict[str, Any] = {
    "optimizer": "spam", "reset_every": 100, "reset_warmup": 30, "settle": 10, "max_grad_norm": 0.0,
}  # fmt: skip
# Gammas of the paper's runs in 16 bits; those of its 4-bit runs are the options' defaults.
STABLE_4BIT: dict[str, Any] = {
    "optimizer": "stable-spam", "reset_every": 100, "max_grad_norm": 0.0,
}  # fmt: skip
STABLE = {**STABLE_4BIT, "gamma1": 0.85, "gamma2": 0.99999}
ADAM: dict[str, Any] = {"optimizer": "adamw", "max_grad_norm": 1.0}
GALORE = {**ADAM, "optimizer": "galore", "rank": 20}
FREE = {**ADAM, "max_grad_norm": 0.0}


@dataclass(frozen=True)
class Arm:
    """One kind of run.

    Attributes:
        name: "group/what".
        options: of the train function.
        sweep: whose best learning rate it takes; None: the options name it.
        door: which train function.
        shape, family, corpus: of the model and its text, in `corpus`.
        seeds: to run.
        base: the arm whose checkpoints it goes on from; `options["stage"]` says how.
    """

    name: str
    options: Mapping[str, Any]
    sweep: str | None = None
    door: str = "train_spam"
    shape: str = "base"
    family: str = "llama"
    corpus: str = "openwebtext"
    seeds: tuple[int, ...] = SEEDS
    base: str | None = None


def _norm(kind: str) -> dict[str, Any]:
    return {**ADAM, "norm": kind}


NORMS = ("pre", "post", "mix", "lns")
# Optimizer of each sweep, and the first rates tried.
SWEEPS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "adam": (ADAM, (1e-3, 2e-3, 4e-3)),
    "spam": (SPAM, (1e-3, 2e-3, 4e-3)),
    "galore": (GALORE, (8e-3, 1.6e-2)),
}
MOST_RATES = 5
CENSUS_THRESHOLD = 50.0  # of g² / v; the papers' 5000 finds next to nothing in runs this short


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "adam": (FREE, "adam"),
    "adam+clip": (ADAM, "adam"),
    "spam": (SPAM, "spam"),
    "spam+clip": ({**SPAM, "max_grad_norm": 1.0}, "spam"),
    "stable-spam": (STABLE, "adam"),
}
SPIKES = {  # noise of 1000 times the rms in every tensor; the same in one tensor, more often
    "noise": "noise:0.02:1000",
    "layer": "layer:0.1:1000",
}


def _clean() -> list[Arm]:
    return [Arm(f"clean/{name}", options, sweep) for name, (options, sweep) in KINDS.items()]


def _spikes(kind: str) -> list[Arm]:
    strict = ({**SPAM, "theta": 50.0}, "spam")
    return [
        Arm(f"{kind}/{name}", {**options, "inject_spikes": SPIKES[kind]}, sweep)
        for name, (options, sweep) in {**KINDS, "spam theta=50": strict}.items()
    ]


def _four_bit() -> list[Arm]:
    kinds = {**KINDS, "stable-spam": (STABLE_4BIT, "adam")}
    del kinds["spam+clip"]
    bits = {"quantise": "int4", "quantise_activations": True}
    return [Arm(f"4-bit/{n}", {**options, **bits}, sweep) for n, (options, sweep) in kinds.items()]


def _norms() -> list[Arm]:
    return [
        Arm(f"{shape}/{kind}", _norm(kind), "adam", "train_mixln", shape)
        for shape in ("deep12", "deep24")
        for kind in NORMS
    ]


def _masked() -> list[Arm]:
    same = {**ADAM, "betas": (0.9, 0.999), "weight_decay": 0.0}  # as in the arms without masks
    kinds = {"meap": {}, "meap, annealed": {"p_schedule": "anneal"}}
    return [
        Arm(f"meap/{name}", {**same, **own}, "adam", "train_meap") for name, own in kinds.items()
    ]


def _memory() -> list[Arm]:
    return [
        Arm("memory/spam d=0.25", {**SPAM, "density": 0.25}, "spam"),
        Arm("memory/spam d=0.5", {**SPAM, "density": 0.5}, "spam"),
        Arm("memory/galore", GALORE, "galore"),
        Arm("memory/adam-mini", {**ADAM, "optimizer": "adam-mini"}, "adam"),
    ]


def _census() -> list[Arm]:
    """Spikes by parameter of plain Adam: three architectures, two corpora."""
    watched = {**FREE, "spikes": True, "spike_threshold": CENSUS_THRESHOLD}
    return [
        Arm(f"census/{family}, {text}", watched, "adam", family=family, corpus=text, seeds=(0,))
        for family in ("llama", "gpt2", "gpt_neox")
        for text in ("openwebtext", "wikitext")
    ]


def _followups() -> list[Arm]:
    """What is done with checkpoints: those of the norm arms, and with and without masks."""
    tuned = [
        Arm(f"{stage}/{kind}", {"stage": stage}, base=f"deep12/{kind}")
        for stage in ("fine-tune", "prune", "prefer")
        for kind in NORMS
    ]
    asked = [
        Arm(f"retrieve/{base.partition('/')[2]}", {"stage": "retrieve"}, base=base)
        for base in ("clean/adam+clip", "meap/meap")
    ]
    return [*tuned, *asked]


def _arms() -> list[Arm]:
    """All arms, what the questions turn on first."""
    norms = _norms()
    return [
        *_clean(),
        *(arm for arm in norms if arm.shape == "deep12"),
        *_followups(),
        *_masked(),
        *_spikes("noise"),
        *_four_bit(),
        *_census(),
        *_memory(),
        *(arm for arm in norms if arm.shape == "deep24"),
        *_spikes("layer"),
    ]


ARMS: list[Arm] = _arms()
_LAST = (
    *("clean/spam+clip", "noise/spam+clip", "noise/spam theta=50", "4-bit/adam+clip"),
    *("memory/spam d=0.5", "memory/galore", "meap/meap, annealed"),
)


_SEED_BY_SEED = ("clean/", "deep12/", "meap/")


def ordered() -> list[tuple[int, Arm]]:
    """(seed, arm) in the order to be run: one seed of what matters most, then more of each."""
    return sorted(
        ((seed, arm) for seed in SEEDS for arm in ARMS if seed in arm.seeds),
        key=lambda run: _turn(*run),
    )


def _turn(seed: int, arm: Arm) -> int:
    if arm.name in _LAST or arm.name.startswith(("deep24/", "layer/")):
        return 9
    if arm.name.startswith(_SEED_BY_SEED) and (seed == 0 or arm.name.startswith("clean/")):
        return min(seed, 1)
    return 2 + seed


def sweep_arms(name: str) -> Arm:
    """The arm of a sweep, without its rate."""
    return Arm(f"sweep/{name}", SWEEPS[name][0], seeds=(SWEEP_SEED,))


def next_rates(name: str, losses: Mapping[float, float]) -> list[float]:
    """The rates of a sweep still to be tried: some at first, then on beyond a best one at the end.

    Args:
        name: a key of SWEEPS.
        losses: rate -> held-out loss, infinite where a run failed.
    """
    rates = SWEEPS[name][1]
    missing = [rate for rate in rates if rate not in losses]
    if missing or len(losses) >= MOST_RATES:
        return missing
    tried = sorted(losses)
    best = min(tried, key=lambda rate: losses[rate])
    if best == tried[-1]:
        return [_rounded(2 * best)]
    return [_rounded(best / 2)] if best == tried[0] else []


def best_rate(losses: Mapping[float, float]) -> float:
    """The rate of the lowest loss."""
    return min(losses, key=lambda rate: losses[rate])


def _rounded(rate: float) -> float:
    return round(rate, 2 - math.floor(math.log10(rate)))
