"""Scores the answers of long-context items: their likelihood, and what greedy decoding would write.

The prompt but for its last token is read once, its keys and values are copied for every answer (all
at once, or one by one where prompts are long), and the answers are read behind them; no token of
the prompt is computed twice. Models whose cache is not of plain keys and values (state spaces,
chunked attention) read every answer with its prompt. Prompts of one batch have one length and
nothing is masked or padded before an answer's end, so that a row's result doesn't depend on its
batch beyond rounding. Logits are computed for the answers alone.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.errors import RunError
from compress.evaluation.long_context.attention import AttentionWatch
from compress.evaluation.long_context.items import Item
from compress.progress import Progress, silent

_ROWS_OF_TOKENS = 2**15  # tokens of prompts in one batch
_COPIES_OF_TOKENS = 2**17  # tokens whose keys and values are held at once for all answers


@dataclass(frozen=True)
class Outcome:
    """What a model made of one item.

    Attributes:
        losses: -log likelihood of each answer, nats, summed over its tokens; the right one first.
        greedy: every token of the right answer is the likeliest, so that greedy decoding writes it.
        tokens: of the right answer.
    """

    losses: tuple[float, ...]
    greedy: bool
    tokens: int

    @property
    def right(self) -> bool:
        """Whether the right answer is likelier than every other; a tie is wrong."""
        return self.losses[0] < min(self.losses[1:])

    @property
    def loss(self) -> float:
        """Loss of the right answer, nats a token."""
        return self.losses[0] / self.tokens


@torch.inference_mode()
def score_items(
    model: Any,
    items: Sequence[Item],
    *,
    task: str = "items",
    batch_size: int = 16,
    watch: AttentionWatch | None = None,
    progress: Progress = silent,
    cached: bool = True,
) -> list[Outcome]:
    """Score items.

    Args:
        model: a causal language model on its device, in evaluation mode.
        items: in any order.
        task: name for the progress.
        batch_size: at most so many items at once; fewer where prompts are long.
        watch: is told of the attention maps, if given.
        progress: called after each batch.
        cached: read each prompt once; False reads it with every answer.

    Returns:
        An outcome for each item, in their order.

    Raises:
        RunError: a likelihood isn't finite; names the item.
    """
    reader = _Reader(model, cached)
    found: dict[int, Outcome] = {}
    for batch in _batches(items, batch_size):
        chosen = [items[i] for i in batch]
        for i, outcome in zip(batch, reader.read(chosen, watch)):
            if not all(map(_finite, outcome.losses)):
                raise RunError(
                    f"{task}: an answer's likelihood in item `{items[i].key}` is not finite",
                    hint="the model overflows in its dtype, or its weights are broken: try "
                    "--dtype float32",
                )
            found[i] = outcome
        progress(task, len(found), len(items), f"{chosen[0].length} tokens")
    return [found[i] for i in range(len(items))]


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _batches(items: Sequence[Item], batch_size: int) -> Iterator[list[int]]:
    """Yield numbers of items whose prompts have one length, long ones first.

    The slowest batch comes first, so that memory runs out at the start or not at all.
    """
    by_length: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        by_length.setdefault(len(item.prompt), []).append(i)
    for length, members in sorted(by_length.items(), reverse=True):
        rows = max(min(batch_size, _ROWS_OF_TOKENS // length), 1)
        for first in range(0, len(members), rows):
            yield members[first : first + rows]


class _Reader:
    """Runs a model over prompts and answers."""

    def __init__(self, model: Any, cached: bool) -> None:
        self._model = model
        self._cached = cached
        forward = getattr(model, "forward", model)
        self._keeps = "logits_to_keep" in inspect.signature(forward).parameters
        generation = getattr(model, "generation_config", None)
        self._suppressed = getattr(generation, "suppress_tokens", None) or []

    def read(self, items: Sequence[Item], watch: AttentionWatch | None) -> Iterator[Outcome]:
        """Yield the outcome of each item of one batch."""
        counts = {len(item.answers) for item in items}
        most = max(counts)
        prompts = torch.stack([item.prompt for item in items])
        width = max(len(answer) for item in items for answer in item.answers)
        # [B, K, width]: answers, filled up behind with their own last token, which nothing reads.
        answers = torch.stack(
            [
                torch.stack([_filled(answer, width) for answer in _padded(item.answers, most)])
                for item in items
            ]
        )
        logits = self._from_cache(prompts, answers, items, watch) if self._cached else None
        if logits is None:
            self._cached = False  # this model's cache won't do; no need to try again
            logits = self._whole(prompts, answers, items, watch)
        for row, item in zip(logits, items):
            yield self._outcome(row, item)

    def _outcome(self, logits: Tensor, item: Item) -> Outcome:
        """Return an item's outcome from the logits of its answers, [K, width, V]."""
        losses = []
        greedy = False
        for k, answer in enumerate(item.answers):
            rows = logits[k, : len(answer)].float()
            target = answer.to(rows.device)
            own = rows.log_softmax(-1).gather(-1, target[:, None])
            losses.append(-float(own.double().sum()))
            if k == 0:
                if self._suppressed:
                    rows = rows.clone()
                    rows[:, self._suppressed] = -torch.inf
                greedy = bool((rows.argmax(-1) == target).all())
        return Outcome(tuple(losses), greedy, len(item.answers[0]))

    def _from_cache(
        self,
        prompts: Tensor,
        answers: Tensor,
        items: Sequence[Item],
        watch: AttentionWatch | None,
    ) -> Tensor | None:
        """Return logits [B, K, width, V], or None where the model's cache can't be repeated."""
        if prompts.shape[1] < 2:
            return None
        batch, count, width = answers.shape
        read = self._call(prompts[:, :-1], keep=1, use_cache=True)
        cache: Any = getattr(read, "past_key_values", None)
        del read
        if not _is_plain(cache):
            return None
        # Each answer needs a copy of the cache; of long prompts there is room for one beside it.
        many = count if batch * count * prompts.shape[1] <= _COPIES_OF_TOKENS else 1
        found = []
        for first in range(0, count, many):
            own = cache if first + many >= count else copy.deepcopy(cache)
            own.batch_repeat_interleave(many)
            last = prompts[:, -1:].repeat_interleave(many, 0)
            chosen = answers[:, first : first + many].flatten(0, 1)
            rows = torch.cat([last, chosen[:, :-1]], 1)
            seen = watch if first == 0 else None
            with seen.during(self._model, items, many, width) if seen else nullcontext():
                out = self._call(rows, keep=0, use_cache=True, past_key_values=own)
            found.append(out.logits.unflatten(0, (batch, many)))
        return torch.cat(found, 1)

    def _whole(
        self,
        prompts: Tensor,
        answers: Tensor,
        items: Sequence[Item],
        watch: AttentionWatch | None,
    ) -> Tensor:
        """Return logits [B, K, width, V], every answer read with its prompt."""
        width = answers.shape[2]
        found = []
        for k in range(answers.shape[1]):
            rows = torch.cat([prompts, answers[:, k, :-1]], 1)
            seen = watch if k == 0 else None
            with seen.during(self._model, items, 1, width) if seen else nullcontext():
                logits = self._call(rows, keep=width, use_cache=False).logits
            found.append(logits[:, -width:])
        return torch.stack(found, 1)

    def _call(self, ids: Tensor, *, keep: int, **options: Any) -> Any:
        """Run the model; logits of the last `keep` positions where it can leave out others."""
        if keep and self._keeps:
            options["logits_to_keep"] = keep
        return self._model(input_ids=ids.to(self._model.device), **options)


def _is_plain(cache: Any) -> bool:
    """Whether a cache holds keys and values alone, of all tokens or of a sliding window."""
    layers = getattr(cache, "layers", None)
    kinds = {"DynamicLayer", "DynamicSlidingWindowLayer"}
    return bool(layers) and all(type(layer).__name__ in kinds for layer in layers or ())


def _filled(answer: Tensor, width: int) -> Tensor:
    return torch.cat([answer, answer[-1:].expand(width - len(answer))])


def _padded(answers: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return answers with the first repeated, so that all items of a batch have as many."""
    return [*answers, *[answers[0]] * (count - len(answers))]
