"""Which layers to condense: each candidate is run, and what the whole model returns is compared.

One walk tries all candidates of a step: they share everything up to the layer in which they
differ, so a candidate costs only the layers behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.checkpoints.replay import BlockRuns
from compress.checkpoints.source import Source
from compress.checkpoints.walk import walk
from compress.experts.divergence import js_divergence
from compress.experts.journal import LayerJournal
from compress.experts.layers import ExpertLayer
from compress.experts.measuring import Replaced
from compress.progress import Progress

DENSE = "dense"
METRICS = ("kl-logits", "js-hidden", "loss")


@dataclass(frozen=True)
class Step:
    """One step of a search.

    Attributes:
        layers: numbers of the decoder layers that are condensed after it, in order of choice.
        value: the metric with them.
        tried: number of the layer added -> the metric, of the best set before it.
    """

    layers: tuple[int, ...]
    value: float
    tried: dict[int, float]


class Scorer:
    """Compares what each stream of a walk returns with what the dense model does.

    Args:
        metric: kl-logits: KL(dense | condensed) of next-token probabilities; js-hidden: the
            divergence of Condense-MoE on the output of the final norm; loss: next-token loss.
            All in nats, mean over tokens; js-hidden mean over texts of their means, as published.
        batches: the walk's.
    """

    def __init__(self, metric: str, batches: Sequence[Mapping[str, Tensor]]) -> None:
        self.metric, self._batches = metric, batches
        self.hidden: Tensor | None = None  # the final norm's last output
        self._dense: Tensor | None = None
        self._sums: dict[str, list[Tensor]] = {}
        self._tokens = 0

    def __call__(self, stream: str, index: int, output: Any) -> None:
        """Take what the model returned in a stream; the dense one comes first of each batch."""
        batch = self._batches[index]
        mask = batch.get("attention_mask")
        value = self.hidden if self.metric == "js-hidden" else output.logits
        assert value is not None
        if stream == DENSE:
            self._dense = value
            rows, length = batch["input_ids"].shape
            by_text = self.metric == "js-hidden"
            own = rows * length if mask is None else int(mask.sum())
            self._tokens += rows if by_text else own
        assert self._dense is not None
        each = self._distance(value, batch["input_ids"].to(value.device))  # [B, T or T - 1]
        if mask is not None:
            each = each * mask[:, -each.shape[1] :].to(each.device)
        each = each.double()
        if self.metric == "js-hidden":
            real = torch.ones_like(each) if mask is None else mask.to(each)
            each = each.sum(1) / real.sum(1).clamp(min=1)
        self._sums.setdefault(stream, []).append(each.sum())

    def values(self) -> dict[str, float]:
        """Return stream -> mean over tokens, or over texts."""
        return {s: float(torch.stack(v).sum()) / self._tokens for s, v in self._sums.items()}

    def _distance(self, value: Tensor, tokens: Tensor) -> Tensor:
        assert self._dense is not None
        if self.metric == "js-hidden":
            return js_divergence(self._dense, value)
        if self.metric == "loss":
            flat = value[:, :-1].float().flatten(0, 1)
            losses = F.cross_entropy(flat, tokens[:, 1:].flatten(), reduction="none")
            return losses.view(len(tokens), -1)
        p, q = self._dense.float().log_softmax(-1), value.float().log_softmax(-1)
        return F.kl_div(q, p, log_target=True, reduction="none").sum(-1)


class _Trial(Replaced):
    """Candidates in streams, with the final norm's output kept for the scorer."""

    def __init__(self, *args: Any, scorer: Scorer, final_norm: str | None) -> None:
        super().__init__(*args)
        self._scorer, self._norm, self._handle = scorer, final_norm, None

    def replay(self, runs: BlockRuns) -> None:
        """As in `Replaced`."""
        if self._norm is not None and self._handle is None:
            norm = runs.module(self._norm)
            self._handle = norm.register_forward_hook(self._keep)  # type: ignore[assignment]
        super().replay(runs)

    def _keep(self, module: Any, args: Any, output: Tensor) -> None:
        self._scorer.hidden = output


def try_sets(
    source: Source,
    batches: Sequence[dict[str, Tensor]],
    journal: LayerJournal,
    sets: Mapping[str, Sequence[ExpertLayer]],
    metric: str,
    final_norm: str | None,
    options: Mapping[str, Any],
) -> dict[str, float]:
    """Return the metric of several sets of condensed layers, from one walk.

    Args:
        source: the model.
        batches: its inputs.
        journal: holds the condensed layers.
        sets: name -> the layers that are condensed.
        metric: one of METRICS.
        final_norm: the norm behind the last block.
        options: device, dtype and progress of the walk.
    """
    scorer = Scorer(metric, batches)
    streams = {DENSE: [], **sets}
    trial = _Trial(
        journal,
        streams,
        scorer=scorer,
        final_norm=final_norm if metric == "js-hidden" else None,
    )
    walk(source, batches, trial, streams=list(streams), on_output=scorer, **options)
    return scorer.values()


def search_layers(
    layers: Sequence[ExpertLayer],
    count: int,
    width: int,
    evaluate: Callable[[Mapping[str, Sequence[ExpertLayer]]], Mapping[str, float]],
    progress: Progress,
    found: Sequence[Step] = (),
    done: Callable[[Step], None] = lambda step: None,
) -> list[Step]:
    """Choose layers one by one, each the one with which the model drifts least.

    Args:
        layers: the candidates.
        count: how many to choose.
        width: how many sets are carried from step to step; 1 is the published greedy search.
        evaluate: sets by name -> their metric; smaller is better.
        progress: told of each step.
        found: steps that an interrupted search had taken, of width 1.
        done: told of each step.

    Returns:
        The steps of the best set, so that every smaller number is there too.
    """
    beams: list[list[Step]] = [list(found)]
    for number in range(len(found), count):
        progress("search layers", number, count)
        tried: dict[str, tuple[list[Step], ExpertLayer, tuple[int, ...]]] = {}
        for beam in beams:
            before = beam[-1].layers if beam else ()
            for layer in layers:
                numbers = (*before, layer.index)
                name = ",".join(map(str, sorted(numbers)))
                if layer.index not in before and name not in tried:
                    tried[name] = (beam, layer, numbers)
        sets = {
            name: [layer for layer in layers if layer.index in numbers]
            for name, (_, _, numbers) in tried.items()
        }
        values = evaluate(sets)
        best = sorted(tried, key=lambda name: values[name])[:width]
        beams = [
            [*tried[name][0], Step(tried[name][2], values[name], _beside(tried, values, name))]
            for name in best
        ]
        done(beams[0][-1])
    progress("search layers", count, count)
    return beams[0]


def _beside(tried: Mapping[str, Any], values: Mapping[str, float], name: str) -> dict[int, float]:
    beam = tried[name][0]
    return {layer.index: values[n] for n, (own, layer, _) in tried.items() if own is beam}
