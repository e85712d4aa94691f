"""Calibration text sampled from the dense model itself.

Two ways of it, both by `registry.Sampling`: from the beginning-of-text token alone with a
temperature that falls over the first tokens, as Williams et al. (arXiv:2410.17170), and going on
from the first tokens of given texts, as Ji et al. (arXiv:2410.17711). Of each group of GROUP texts
those with the highest perplexity under the model are dropped (Ji et al.: the highest fifth), after
texts that run in a loop.

Every draw is keyed by (seed, number of the text, place), so a text depends on the batch that it was
sampled in by rounding alone. Groups are kept by content: the model's digest, the options, the seed.
A run that was killed goes on with those it had finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from compress.checkpoints.caches import cache_directory, put_whole
from compress.checkpoints.placement import compute_dtype
from compress.checkpoints.source import Source
from compress.data.registry import Sampling
from compress.data.specs import load_documents
from compress.data.windows import begin_token, tokenised
from compress.errors import RequestError, RunError
from compress.numerics.counter import permutation
from compress.progress import Progress, silent

GROUP = 32
"""Texts that are filtered together."""
RUN = 4
"""Tokens in a row of which a loop has few distinct ones."""
_PATIENCE = 8  # groups, after which a model whose text is never kept is given up
_VERSION = 1  # raised with every change of what is sampled


class Text(NamedTuple):
    """A sampled text."""

    ids: list[int]
    """Its tokens, those of the prefix included, without beginning and end of text."""
    loss: float
    """Mean negative log probability of the sampled tokens under the model, at temperature 1."""


@dataclass(frozen=True)
class Sampler:
    """Samples text from a model, a group at a time, and remembers it.

    Attributes:
        source: the model.
        options: how.
        length: tokens of a text at most, beginning-of-text included.
        seed: of the draws.
        batch_size: texts sampled at once.
        device, dtype: where the model runs, and in what type; None is a type that runs well there.
        directory: of the cache; None is the usual one.
        registry: a user's registry file, for the prefix.
        budget: about how many tokens will be taken, for the progress alone.
        progress: told of the tokens that are kept.
    """

    source: Source
    options: Sampling
    length: int
    seed: int = 0
    batch_size: int = GROUP
    device: str = "cpu"
    dtype: torch.dtype | None = None
    directory: Path | None = None
    registry: str | Path | None = None
    budget: int = 1
    progress: Progress = silent

    def texts(self) -> Iterator[list[int]]:
        """Yield the token ids of kept texts, without end.

        Raises:
            RequestError: no token to begin with, or no text of which to take a prefix.
            RunError: the logits aren't finite; or next to nothing that the model says can be kept.
        """
        state = _Model(self)
        tokens = kept_tokens = 0
        number = 0
        while True:
            found = self.group(number, state)
            kept = kept_of(found, self.options)
            tokens += sum(len(text.ids) for text in found)
            kept_tokens += sum(len(text.ids) for text in kept)
            number += 1
            # With the tokens that will stand around each text.
            self.progress(
                "sample", min(kept_tokens + number * GROUP, self.budget), self.budget, "own text"
            )
            if number % _PATIENCE == 0 and kept_tokens < number * GROUP:
                raise RunError(
                    f"text sampled from `{self.source.name}` can't be used: of {number * GROUP} "
                    f"texts with {tokens} tokens {kept_tokens} tokens are neither loops nor empty",
                    "calibrate on another text, such as `--calib demo`",
                )
            yield from (text.ids for text in kept)

    def group(self, number: int, state: _Model | None = None) -> list[Text]:
        """Return all texts of a group, from the cache or sampled now.

        Args:
            number: of the group, from 0.
            state: the model, where it is open already.
        """
        state = state or _Model(self)
        path = self._path(number, state)
        try:
            return [Text(ids, loss) for ids, loss in json.loads(path.read_bytes())]
        except (OSError, ValueError, TypeError):
            pass
        first = number * GROUP
        found = []
        for start in range(first, first + GROUP, self.batch_size):
            found += state.sample(range(start, min(start + self.batch_size, first + GROUP)))
        with contextlib.suppress(OSError):  # a cache that can't be written costs time, not the run
            put_whole(path, json.dumps([[text.ids, text.loss] for text in found]).encode())
        return found

    def _path(self, number: int, state: _Model) -> Path:
        what = {
            "version": _VERSION,
            "transformers": transformers.__version__,
            "model": self.source.digest(),
            "options": {**asdict(self.options), "keep": 0, "distinct": 0},  # they act afterwards
            "prefixes": state.prefix_digest,
            "length": self.length,
            "seed": self.seed,
            "device": torch.device(self.device).type,
            "dtype": str(state.dtype),
            "group": number,
        }
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return (self.directory or cache_directory()) / "sampled" / key[:2] / f"{key}.json"


class _Model:
    """The model, loaded when the first text is sampled."""

    def __init__(self, sampler: Sampler) -> None:
        source = sampler.source
        self._sampler = sampler
        self._tokenizer: Any = source.tokenizer()
        self._begin = begin_token(self._tokenizer) or _first_token(source)
        stored = sampler.dtype or source.dtype
        self.dtype = compute_dtype(stored, sampler.device, source.bytes_on_disk())
        self._loaded: Any = None
        self._prefixes = self._read_prefixes()
        self.prefix_digest = hashlib.sha256(json.dumps(self._prefixes).encode()).hexdigest()

    def _read_prefixes(self) -> list[list[int]]:
        """Return the first tokens of the texts that are gone on from; one empty list without."""
        options = self._sampler.options
        if not options.prefix:
            return [[]]
        documents = load_documents(options.prefix, registry=_as_path(self._sampler.registry))
        # A corpus whose rows are joined is one document: its paragraphs are the texts.
        lines = [line for text in documents for line in text.split("\n") if line.strip()]
        ids = tokenised(self._tokenizer, lines)
        found = [own[: options.prefix_tokens] for own in ids if len(own) >= options.prefix_tokens]
        if not found:
            raise RequestError(
                f"no text of `{options.prefix}` has {options.prefix_tokens} tokens to go on from",
                "name a longer text as `prefix`",
            )
        return found

    def _prefix(self, number: int) -> list[int]:
        epoch, place = divmod(number, len(self._prefixes))
        order = permutation(self._sampler.seed, epoch, len(self._prefixes))
        return self._prefixes[int(order[place])]

    @torch.inference_mode()
    def sample(self, numbers: range) -> list[Text]:
        """Sample the texts of some numbers in one batch."""
        if self._loaded is None:
            self._loaded = self._sampler.source.load(self.dtype, self._sampler.device)
        model, sampler = self._loaded, self._sampler
        prefixes = [self._prefix(number) for number in numbers]
        start = torch.tensor([self._begin + prefix for prefix in prefixes], device=model.device)
        new = sampler.length - start.shape[1]
        if new < 1:
            raise RequestError(
                f"a text of {sampler.length} tokens has no room after {start.shape[1]} given ones",
                "use a longer `--seqlen`",
            )
        draws = torch.stack([_uniform(sampler.seed, number, new) for number in numbers])
        drawer = Drawer(sampler.options, draws.to(model.device), start.shape[1])
        ends = _end_tokens(model, self._tokenizer)
        # The model's own generation config must not act beside: it may hold penalties.
        model.generation_config = GenerationConfig(
            max_new_tokens=new,
            do_sample=False,
            use_cache=True,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
        )
        out = model.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            logits_processor=LogitsProcessorList([drawer]),
        )
        losses = torch.stack(drawer.losses, 1).cpu()
        return [
            _text(row, start.shape[1], len(self._begin), loss, ends)
            for row, loss in zip(out.tolist(), losses, strict=True)
        ]


def _as_path(name: str | Path | None) -> Path | None:
    return None if name is None else Path(name)


def _first_token(source: Source) -> list[int]:
    """Return the token that a text begins with where the tokenizer adds none."""
    config: Any = source.config.get_text_config(decoder=True)
    for name in ("bos_token_id", "eos_token_id"):
        found = getattr(config, name, None)
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int):
            return [found]
    raise RequestError(
        f"`{source.name}` has no token that text begins with, from which `self` could sample",
        "calibrate on another text, such as `--calib demo`",
    )


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a text, of the generation config, the config and the tokenizer."""
    found: list[int] = []
    for holder in (model.generation_config, model.config.get_text_config(), tokenizer):
        value = getattr(holder, "eos_token_id", None)
        found += value if isinstance(value, list) else [] if value is None else [value]
    return list(dict.fromkeys(found))


def _uniform(seed: int, number: int, count: int) -> Tensor:
    """Return the draws of one text, float64 [count] in [0, 1)."""
    words = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(number,))).random_raw(count)
    return torch.from_numpy((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _text(row: list[int], given: int, begin: int, losses: Tensor, ends: Sequence[int]) -> Text:
    """Take a text out of a row: up to the first token that ends it, which counts in the loss."""
    new = row[given:]
    stop = next((i for i, token in enumerate(new) if token in ends), None)
    scored = losses[: len(new) if stop is None else stop + 1]
    ids = row[begin:given] + (new if stop is None else new[:stop])
    return Text(ids, float(scored.mean()))


class Drawer(LogitsProcessor):
    """Leaves one token a row, drawn by given numbers, so that greedy decoding samples.

    So every architecture's own cache is used, and no global random state.

    Args:
        options: temperature, cuts and penalty.
        draws: float64 [B, steps] in [0, 1), of each row its own.
        given: tokens that rows begin with.

    Attributes:
        losses: of each step the negative log probability of the drawn tokens, float64 [B].
    """

    def __init__(self, options: Sampling, draws: Tensor, given: int) -> None:
        self._options, self._draws, self._given = options, draws, given
        self.losses: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [B, V] that are -inf but for the drawn token.

        Raises:
            RunError: a logit is NaN, or all are -inf.
        """
        step = input_ids.shape[1] - self._given
        logits = scores.double()
        if bool(logits.isnan().any()) or not bool(logits.isfinite().any(-1).all()):
            raise RunError(
                f"the logits of the model's own text aren't finite at token {step}",
                "the model overflows in its dtype: try --dtype float32 or bfloat16",
            )
        chosen = self._drawn(logits, input_ids, step)
        own = logits.log_softmax(-1).gather(1, chosen)
        self.losses.append(-own.squeeze(1))
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    def _drawn(self, logits: Tensor, input_ids: Tensor, step: int) -> Tensor:
        """Draw a token of each row, int64 [B, 1], by inverting the distribution function."""
        options = self._options
        if options.repetition_penalty != 1:
            seen = logits.gather(1, input_ids)
            lowered = torch.where(
                seen < 0, seen * options.repetition_penalty, seen / options.repetition_penalty
            )
            logits = logits.scatter(1, input_ids, lowered)
        probabilities = (logits / temperature(options, step)).softmax(-1)
        values, order = torch.sort(probabilities, dim=-1, descending=True, stable=True)
        if options.top_k:
            values[:, options.top_k :] = 0
        values = values / values.sum(-1, keepdim=True)
        values = values * (values.cumsum(-1) - values < options.top_p)
        reached = values.cumsum(-1)
        wanted = self._draws[:, step, None] * reached[:, -1:]
        place = (reached <= wanted).sum(-1, keepdim=True)
        last = (values > 0).sum(-1, keepdim=True) - 1
        return order.gather(1, place.minimum(last))


def temperature(options: Sampling, step: int) -> float:
    """Return the temperature of a sampled token, the first being 0."""
    if step >= options.ramp:
        return options.temperature
    fall = options.first_temperature - options.temperature
    return options.first_temperature - fall * step / options.ramp


def kept_of(texts: Sequence[Text], options: Sampling) -> list[Text]:
    """Return the texts of a group that are used, in their order.

    Those that are empty or run in a loop go first; of the others the share `keep` with the lowest
    perplexity stays, equal ones by order.
    """
    sound = [text for text in texts if text.ids and distinct_runs(text.ids) >= options.distinct]
    count = math.ceil(options.keep * len(sound))
    by_loss = sorted(range(len(sound)), key=lambda i: (sound[i].loss, i))
    return [sound[i] for i in sorted(by_loss[:count])]


def distinct_runs(ids: Sequence[int]) -> float:
    """Return the share of distinct ones among the runs of RUN tokens; 1 where there is none."""
    runs = [tuple(ids[i : i + RUN]) for i in range(len(ids) - RUN + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0
