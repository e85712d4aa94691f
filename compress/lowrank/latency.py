"""How long one forward of the dense and of the factored model takes, by the number of tokens.

Few tokens at once are bound by the bytes of the weights, many by operations: the ratio of the two
shows where low rank pays. Both models are in memory, and timed in turn, so that a busy machine
slows both alike; medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from compress.checkpoints.source import Source
from compress.evaluation.perplexity import context_limit
from compress.numerics.counter import generator
from compress.progress import Progress

TOKENS = (1, 16, 256)
_REPEATS = 9


def measure_latency(
    dense: Source,
    factored: Source,
    *,
    tokens: Sequence[int] = TOKENS,
    device: str,
    dtype: torch.dtype | None,
    seed: int,
    progress: Progress,
) -> list[dict[str, float]]:
    """Time both models on some numbers of tokens at once.

    Args:
        dense, factored: the checkpoints.
        tokens: the numbers.
        device, dtype: where and in what type they run; None is the type on disk.
        seed: of the random tokens.
        progress: told of each size.

    Returns:
        Of each model {"1_token_s": …, "16_tokens_s": …, "256_tokens_s": …}, median seconds; empty
        where it doesn't read tokens. Sequences are as long as the model's limit allows, then more.
    """
    models = [source.load(dtype, device) for source in (dense, factored)]
    found: list[dict[str, float]] = [{}, {}]
    for number, count in enumerate(tokens):
        progress("latency", number, len(tokens), f"{count} tokens")
        calls = [call for m in models if (call := forward_call(m, count, seed)) is not None]
        if len(calls) < len(models):
            return [{}, {}]
        for result, seconds in zip(found, in_turn(calls, device), strict=True):
            result[latency_name(count)] = seconds
    progress("latency", len(tokens), len(tokens))
    return found


def latency_name(tokens: int) -> str:
    """What a measured time is called in receipts."""
    return f"{tokens}_token{'s' * (tokens > 1)}_s"


def forward_call(model: Any, tokens: int, seed: int) -> Callable[[], Any] | None:
    """Return a forward of some random tokens, in sequences as long as the model allows.

    None where the model doesn't read tokens.
    """
    embedding = model.get_input_embeddings()
    size = getattr(getattr(embedding, "weight", None), "shape", (0,))[0]
    if not size or getattr(model.config, "is_encoder_decoder", False):
        return None
    limit = context_limit(model) or tokens
    length = next(n for n in range(min(tokens, limit), 0, -1) if tokens % n == 0)
    ids = torch.randint(size, (tokens // length, length), generator=generator(seed, tokens))
    extra = {"use_cache": False} if model.can_generate() else {}
    ids = ids.to(model.device)
    return lambda: model(input_ids=ids, **extra)


@torch.inference_mode()
def in_turn(calls: list[Callable[[], Any]], device: str) -> list[float]:
    """Return the median seconds of each call, made one after the other several times."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(_REPEATS + 1):
        for call, own in zip(calls, times, strict=True):
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            if repeat:  # the first is not counted
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
