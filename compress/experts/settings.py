"""The options of `cd-moe-condense`, and what can't be meant by them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from compress.errors import Fault, RequestError, nearest, refuse
from compress.evaluation.settings import EvaluationSettings
from compress.experts.layers import ExpertLayer
from compress.experts.searching import METRICS
from compress.experts.selection import SCORES

ALL_SCORES = ("greedy-ls", "greedy-js", "do-acp", "random", *SCORES)
WEIGHTS = ("least-squares", "conditional-mean")
REFITS = ("ridge", "sequential", "none")
GATES = ("refit", "constant", "keep")
MODES = ("dense", "prune", "merge")
_PAPER = {
    "score": "greedy-js",
    "weights": "conditional-mean",
    "refit": "none",
    "shared_gate": "constant",
    "layer_search": "greedy",
    "metric": "js-hidden",
}
_PAPER_TEXT = {"samples": 100, "search_samples": 100}
PAPER_LENGTH = 256  # tokens of a text


@dataclass(frozen=True)
class CondenseSettings(EvaluationSettings):
    """How layers are chosen, condensed, stored and scored.

    Attributes:
        mode: dense, or prune, merge: every layer keeps its router and `experts` experts.
        layers: a number, prefix:N, all, or i:1,4,7; None is a third of the expert layers.
        experts: routed experts kept in a layer; None is as many as a token is routed to.
        score: how experts are chosen; None is greedy-ls, where experts are pruned reap.
        weights: which constants they get.
        refit: ridge, each layer by itself; sequential, on what the condensed layers before it give;
            none.
        ridge: auto (chosen on held-out tokens), or a strength.
        shared_gate: what becomes of a shared MLP's sigmoid gate: constant, keep, or refit.
        layer_search: greedy, single, or beam:N.
        metric: what the search compares.
        search_samples: calibration sequences that the search runs on.
        stock_only: refuse what the family's own config can't say.
        paper: Condense-MoE as published; 100 sequences of 256 tokens, unless told.
        target_bytes: condense as many layers as it takes to reach this size of the weights.
        target_speed: 1.3x, or prefill:1.3x: as many as it takes to decode, or to read a prompt, so
            many times as fast as the original, measured with both in memory.
        finetune: steps of fine-tuning of the condensed layers; None is none.
        finetune_data: data specs of its text; empty is `calib`.
        finetune_sft: "PROMPT:ANSWER", columns of that: fine-tune on answers.
        finetune_lr, finetune_batch, finetune_seqlen: None is 5e-5, 8 sequences, 256 tokens.
        calib, samples, seqlen, batch_size, doc_sampling, select, chat_template, allow_leakage,
            registry: the calibration text, as in alpha-prune.
        ppl, tasks, task_dirs, limit, stride, eval_seqlen, speed: what is scored before and after.
        seed, device, dtype: as in every command.
    """

    mode: str = "dense"
    layers: str | int | None = None
    experts: int | None = None
    score: str | None = None
    weights: str = "least-squares"
    refit: str = "ridge"
    ridge: str | float = "auto"
    shared_gate: str | None = None
    layer_search: str = "greedy"
    metric: str = "kl-logits"
    search_samples: int = 16
    stock_only: bool = False
    paper: bool = False
    target_bytes: int | None = None
    target_speed: str | None = None
    finetune: int | None = None
    finetune_data: tuple[str, ...] = ()
    finetune_sft: str | None = None
    finetune_lr: float | None = None
    finetune_batch: int | None = None
    finetune_seqlen: int | None = None
    calib: str = "c4"
    samples: int = 128
    seqlen: int | None = None
    batch_size: int = 1
    doc_sampling: str = "packed"
    select: str = "random"
    chat_template: bool = True
    allow_leakage: bool = False
    registry: str | None = None
    device: str = "auto"
    dtype: str = "auto"

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def rule(self) -> str:
        """How experts are chosen."""
        return self.score or ("greedy-ls" if self.mode == "dense" else "reap")

    @property
    def gate(self) -> str:
        """What becomes of a shared MLP's sigmoid gate."""
        return self.shared_gate or ("constant" if self.refit == "none" else "refit")

    @property
    def beam(self) -> int:
        """Sets that the layer search carries; 0 where layers are ranked one by one."""
        if self.layer_search == "single":
            return 0
        return 1 if self.layer_search == "greedy" else int(self.layer_search.partition(":")[2])

    @property
    def speed_target(self) -> tuple[str, float] | None:
        """What is to be faster, decode or prefill, and how many times; None where unreadable."""
        found = _SPEED.fullmatch(self.target_speed or "")
        if found is None or float(found[2]) <= 1:
            return None
        return found[1] or "decode", float(found[2])

    @property
    def ridges(self) -> tuple[float, ...]:
        """Strengths that the refit may choose from."""
        return (1e-3, 1e-2, 1e-1, 1.0) if self.ridge == "auto" else (float(self.ridge),)

    def resolved(self) -> CondenseSettings:
        """Check everything, and put the published settings in place where they are asked for.

        Raises:
            RequestError: all faults in one.
        """
        refuse(
            [
                *self._paper_faults(),
                *self._name_faults(),
                *self._number_faults(),
                *self._mode_faults(),
            ]
        )
        if not self.paper:
            return self
        default = {f.name: f.default for f in fields(self)}
        text = {k: v for k, v in _PAPER_TEXT.items() if getattr(self, k) == default[k]}
        return replace(self, **_PAPER, **text)  # type: ignore[arg-type]

    def _paper_faults(self) -> list[Fault]:
        default = {f.name: f.default for f in fields(self)}
        set_apart = [
            name
            for name, value in _PAPER.items()
            if self.paper and getattr(self, name) not in (default[name], value)
        ]
        return [
            (
                f"`--{name.replace('_', '-')} {getattr(self, name)}` isn't what `--paper` stands "
                f"for, {_PAPER[name]}",
                "leave one of them out.",
            )
            for name in set_apart
        ]

    def _mode_faults(self) -> list[Fault]:
        """What can't act where layers stay sparse."""
        if self.mode == "dense":
            return []
        default = {f.name: f.default for f in fields(self)}
        idle = (
            "layers",
            "target_bytes",
            "target_speed",
            "paper",
            "weights",
            "refit",
            "ridge",
            "shared_gate",
        )
        also = ("layer_search", "metric", *(("score",) if self.mode == "merge" else ()))
        return [
            (
                f"`--{name.replace('_', '-')}` can't act with `--mode {self.mode}`",
                "every layer keeps its router and as many experts." if name == "layers" else "",
            )
            for name in (*idle, *also)
            if getattr(self, name) != default[name]
        ]

    def _name_faults(self) -> list[Fault]:
        choices: list[tuple[str, str, Sequence[str]]] = [
            ("mode", self.mode, MODES),
            ("score", self.rule, ALL_SCORES if self.mode == "dense" else tuple(SCORES)),
            ("weights", self.weights, WEIGHTS),
            ("refit", self.refit, REFITS),
            ("shared-gate", self.gate, GATES),
            ("metric", self.metric, METRICS),
        ]
        faults = [
            (f"`--{name} {value}` isn't a {name}", nearest(value, known))
            for name, value, known in choices
            if value not in known
        ]
        if not re.fullmatch(r"greedy|single|beam:[1-9]\d*", self.layer_search):
            faults.append(
                (f"`--layer-search {self.layer_search}` isn't a search", "greedy, single, beam:N.")
            )
        if self.gate == "refit" and self.refit == "none":
            faults.append(
                ("`--shared-gate refit` can't act with `--refit none`", "use constant or keep.")
            )
        if self.layers is not None and not _LAYERS.fullmatch(str(self.layers)):
            faults.append((f"`--layers {self.layers}` isn't N, prefix:N, all or i:1,4,7", ""))
        return faults

    def _number_faults(self) -> list[Fault]:
        faults = []
        if self.experts is not None and self.experts < 0:
            faults.append((f"`--experts {self.experts}` is below 0", "0 keeps the shared MLP."))
        least = ("samples", "search_samples", "seqlen", "batch_size", "target_bytes", "finetune")
        for name in least:
            value = getattr(self, name)
            if value is not None and value < 1:
                faults.append((f"`--{name.replace('_', '-')} {value}` is less than 1", ""))
        deciding = [n for n in ("target_bytes", "target_speed", "layers") if getattr(self, n)]
        if len(deciding) > 1:
            first, second = (f"`--{name.replace('_', '-')}`" for name in deciding[:2])
            faults.append((f"{first} decides how many layers, and so does {second}", "give one."))
        if self.target_speed is not None and self.speed_target is None:
            faults.append(
                (f"`--target-speed {self.target_speed}` isn't 1.3x or prefill:1.3x, above 1", "")
            )
        if self.finetune is None:
            faults += [
                (f"`--{name.replace('_', '-')}` can't act without `--finetune`", "say its steps.")
                for name in _TUNING
                if getattr(self, name)
            ]
        try:
            strength = 1.0 if self.ridge == "auto" else float(self.ridge)
        except ValueError:
            strength = 0.0
        if not 0 < strength < float("inf"):
            faults.append((f"`--ridge {self.ridge}` is neither auto nor a positive number", ""))
        return faults


_TUNING = ("finetune_data", "finetune_sft", "finetune_lr", "finetune_batch", "finetune_seqlen")
_SPEED = re.compile(r"(?:(decode|prefill):)?(\d+(?:\.\d+)?)x?")
_LAYERS = re.compile(r"\d+|prefix:\d+|all|i:\d+(,\d+)*")


def candidates(
    asked: str | int | None, layers: Sequence[ExpertLayer]
) -> tuple[list[ExpertLayer], int]:
    """Return the layers that may be condensed, and how many of them are to be.

    Args:
        asked: `--layers`.
        layers: the model's expert layers.

    Raises:
        RequestError: more layers than there are, or one that is dense.
    """
    everything = list(layers)
    text = str(asked) if asked is not None else str(max(1, round(len(layers) / 3)))
    if text == "all":
        return everything, len(everything)
    if text.startswith("i:"):
        wanted = sorted({int(n) for n in text[2:].split(",")})
        known = {layer.index: layer for layer in layers}
        missing = [n for n in wanted if n not in known]
        if missing:
            raise RequestError(
                f"`--layers {text}`: decoder layer {missing[0]} has no experts: it is dense "
                "already, or the model has no such layer",
                f"layers with experts: {_ranges(sorted(known))}",
            )
        return [known[n] for n in wanted], len(wanted)
    count = int(text.removeprefix("prefix:"))
    if not 1 <= count <= len(everything):
        raise RequestError(
            f"`--layers {text}`: the model has {len(everything)} layers with experts",
            f"1 to {len(everything)}; they are {_ranges([layer.index for layer in layers])}",
        )
    return (everything[:count] if text.startswith("prefix:") else everything), count


def check_experts(experts: int, layers: Sequence[ExpertLayer]) -> None:
    """Refuse a number of experts that the layers can't keep.

    Raises:
        RequestError: more than there are; none where no shared MLP is left.
    """
    least = min(layers, key=lambda layer: layer.count)
    if experts > least.count:
        raise RequestError(
            f"`--experts {experts}`: `{least.experts}` has {least.count} experts",
            f"0 to {least.count}",
        )
    bare = next((layer for layer in layers if layer.shared is None), None)
    if experts == 0 and bare is not None:
        raise RequestError(
            f"`--experts 0` would leave nothing: `{bare.name}` has no shared expert",
            "keep at least 1",
        )


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers as "1 to 3, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs)
