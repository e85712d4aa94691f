"""How fast a model reads and writes, and how much memory that takes.

Plain loops over the model's own forward and cache, so that every architecture is measured the same
way and nothing of a serving engine is in the figure.
"""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from compress.errors import RequestError
from compress.evaluation.perplexity import context_limit
from compress.numerics.counter import generator
from compress.numerics.heap import return_free_memory
from compress.progress import Progress, silent

_SAMPLE_SECONDS = 0.005


@dataclass(frozen=True)
class Speed:
    """Speed and memory of a model.

    Attributes:
        prefill_tokens_per_s: prompt tokens read a second, all rows of the batch counted.
        decode_tokens_per_s: tokens written a second with the cache; None where a model has none.
        peak_bytes: the model's tensors, and what reading and writing took on top at its highest.
        prompt, new, batch_size: tokens a row and rows.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None
    peak_bytes: int
    prompt: int
    new: int
    batch_size: int

    def as_receipt(self) -> dict[str, Any]:
        """The receipt's entry; what was not measured is absent."""
        entry: dict[str, Any] = {"prefill_tokens_per_s": self.prefill_tokens_per_s}
        if self.decode_tokens_per_s is not None:
            entry["decode_tokens_per_s"] = self.decode_tokens_per_s
        entry.update(
            peak_bytes=self.peak_bytes,
            prompt=self.prompt,
            new=self.new,
            batch_size=self.batch_size,
        )
        return entry


def anonymous_bytes() -> int:
    """Return this process's anonymous memory: what it holds apart from mapped files.

    Memory-mapped weights are not in it. Where the system doesn't tell (outside Linux), the whole
    resident size.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import psutil

    return int(psutil.Process().memory_info().rss)


class PeakMemory:
    """Measures the high-water mark of memory inside a `with` block.

    On CUDA what torch allocated on the device; elsewhere the process's anonymous memory, sampled
    every few milliseconds.

    Attributes:
        start: bytes at the beginning.
        peak: bytes at the highest, set at the end.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._device = torch.device(device)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.start = 0
        self.peak = 0

    @property
    def growth(self) -> int:
        """Bytes at the highest above those at the beginning."""
        return max(self.peak - self.start, 0)

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self.start = self.peak = torch.cuda.memory_allocated(self._device)
            return self
        gc.collect()
        return_free_memory()  # or its reuse would hide what the `with` block takes
        self.start = self.peak = anonymous_bytes()
        self._stop.clear()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self.peak = max(self.peak, anonymous_bytes())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self._device)
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.peak = max(self.peak, anonymous_bytes())


def peak_memory(device: str | torch.device = "cpu") -> PeakMemory:
    """Return a `with` block's memory meter: `with peak_memory() as memory: …; memory.peak`."""
    return PeakMemory(device)


@torch.inference_mode()
def measure_speed(
    model: Any,
    *,
    prompt: int = 128,
    new: int = 32,
    batch_size: int = 1,
    repeats: int = 5,
    seed: int = 0,
    progress: Progress = silent,
) -> Speed:
    """Measure reading (prefill), writing (decode) and peak memory.

    The median of `repeats` runs, after one that counts for nothing. A prompt and answer longer than
    the model's limit are shortened to it.

    Args:
        model: on its device, in evaluation mode.
        prompt, new: tokens read and tokens written a row.
        batch_size: rows.
        repeats: runs that count.
        seed: of the random prompt.
        progress: called after each run.

    Raises:
        RequestError: a size below 1, or a model without a token embedding.
    """
    for name, value in (("prompt", prompt), ("new", new), ("batch size", batch_size)):
        if value < 1:
            raise RequestError(f"speed needs a {name} of at least 1, is {value}")
    longest = context_limit(model)
    if longest is not None:
        prompt = max(min(prompt, longest - new), 1)
        new = min(new, max(longest - prompt, 1))
    ids = random_prompt(model, batch_size, prompt, seed)
    prefills, decodes = [], []
    run_once(model, ids, new)  # the libraries compile code for each new shape, and keep it
    with peak_memory(model.device) as memory:
        for run in range(repeats):
            progress("speed", run, repeats, "read and write")
            read, written = run_once(model, ids, new)
            prefills.append(read)
            decodes.append(written)
        progress("speed", repeats, repeats, "read and write")
    writes = [seconds for seconds in decodes if seconds is not None]
    return Speed(
        prefill_tokens_per_s=batch_size * prompt / statistics.median(prefills),
        decode_tokens_per_s=batch_size * new / statistics.median(writes) if writes else None,
        peak_bytes=_tensor_bytes(model) + memory.growth,
        prompt=prompt,
        new=new,
        batch_size=batch_size,
    )


def random_prompt(model: Any, rows: int, length: int, seed: int) -> torch.Tensor:
    """Return random token ids [rows, length] on the model's device.

    Raises:
        RequestError: the model has no token embedding.
    """
    embedding = model.get_input_embeddings()
    size = getattr(getattr(embedding, "weight", None), "shape", (0,))[0]
    if not size:
        raise RequestError(f"speed needs a model that reads tokens; `{type(model).__name__}` isn't")
    ids = torch.randint(size, (rows, length), generator=generator(seed))
    return ids.to(model.device)


@torch.inference_mode()
def run_once(model: Any, ids: torch.Tensor, new: int) -> tuple[float, float | None]:
    """Return the seconds of one prefill, and of `new` decoding steps where the model can."""
    extra = {}
    if getattr(model.config, "is_encoder_decoder", False):
        extra["decoder_input_ids"] = ids[:, :1]
    writes = model.can_generate() and not extra
    seconds, output = _timed(ids.device, lambda: model(input_ids=ids, use_cache=writes, **extra))
    cache = getattr(output, "past_key_values", None)
    if not writes or cache is None:
        return seconds, None
    first = output.logits[:, -1:].argmax(-1)

    def write() -> None:
        token, past = first, cache
        for _ in range(new):
            step = model(input_ids=token, past_key_values=past, use_cache=True)
            token, past = step.logits[:, -1:].argmax(-1), step.past_key_values

    return seconds, _timed(ids.device, write)[0]


def _timed(device: torch.device, call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call, the device's work included, and its result."""
    _wait(device)
    start = time.perf_counter()
    result = call()
    _wait(device)
    return time.perf_counter() - start, result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _tensor_bytes(model: Any) -> int:
    """Return the bytes of the model's parameters and buffers, shared ones counted once."""
    sizes = {
        (tensor.data_ptr(), tensor.shape): tensor.numel() * tensor.element_size()
        for tensor in [*model.parameters(), *model.buffers()]
    }
    return sum(sizes.values())
