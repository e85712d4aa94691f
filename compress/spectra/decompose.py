"""From weights to eigenvalues and to whatever else must be measured while weights are at hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from compress.errors import RequestError
from compress.numerics import gram_eigenvalues
from compress.numerics.eigen import allows_single
from compress.spectra.bulk import bulk_metrics
from compress.spectra.cache import SpectraCache
from compress.spectra.farms import FarmsSettings, window_eigenvalues
from compress.spectra.metrics import METRICS, measure_batch
from compress.spectra.settled import BOTTOM, settled
from compress.spectra.shuffle import shuffled, spectral_distance

# Weights in one batched decomposition on CUDA, in float64 4 GB with its copies.
_BATCH_WEIGHTS = 1 << 27
# Below this side nothing is gained by single precision; above this ratio of the sides the least
# eigenvalues drown in its rounding.
_SINGLE_FROM, _NEARLY_SQUARE = 64, 0.9

_Run = Callable[[Callable[..., Any], Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class Wanted:
    """What is measured of each matrix.

    Attributes:
        metrics: names of METRICS.
        exact: decompose by singular values, see `gram_eigenvalues`.
        farms: windows of the metric farms.
        seed: of the shuffle behind rand_distance, >= 0.
        precise: eigenvalues in double precision throughout, for what must not hang on the last
            digits. Else, on a CPU, single precision is tried first where all metrics can come
            from it, and double where it doesn't settle them, see `settled`.
    """

    metrics: tuple[str, ...]
    exact: bool = False
    farms: FarmsSettings = field(default_factory=FarmsSettings)
    seed: int = 0
    precise: bool = False

    def single(self, weight: Tensor) -> bool:
        """Whether the eigenvalues of this matrix [out, in] are first tried in single precision."""
        if self.exact or self.precise or not allows_single(weight):
            return False
        short, long = min(weight.shape), max(weight.shape)
        if short < _SINGLE_FROM or any(METRICS[m].needs != "spectrum" for m in self.metrics):
            return False
        return short < _NEARLY_SQUARE * long or not BOTTOM & set(self.metrics)

    def key(self, what: str, weight: Tensor) -> str:
        """What a cached entry must agree on beside the tensor."""
        how = f"{'svd' if self.exact else 'gram'} {weight.device.type}"
        setting = {"farms": self.farms, "rand_distance": f"seed {self.seed}"}.get(what, "")
        return f"{what} {setting} {how}"


@dataclass
class PartSpectrum:
    """One whole matrix, or one of the parts of a fused one."""

    shape: tuple[int, int]
    eigenvalues: Tensor
    """[min(shape)] float64, ascending."""
    extra: dict[str, float | None]
    """The metrics that need more than eigenvalues; None for a value that doesn't exist."""
    cached: bool = False
    """Nothing was measured anew."""


def decompose(
    weights: Sequence[tuple[str, Tensor]], wanted: Wanted, cache: SpectraCache | None = None
) -> list[PartSpectrum]:
    """Decompose named matrices [out, in]; results in the given order.

    On a CPU each matrix is one task of one thread, as many at a time as torch has threads, so that
    values don't depend on their number; on CUDA equal shapes go together.

    Raises:
        RequestError: a weight that is NaN or Inf; the matrix is named.
    """
    if not weights:
        return []
    with _threads(weights[0][1]) as run:
        jobs = run(lambda item: _Job(item[0], item[1], wanted, cache), weights)
        if weights[0][1].is_cuda:
            _decompose_batches([job for job in jobs if job.eigenvalues is None])
        else:
            run(_Job.decompose, [job for job in jobs if job.eigenvalues is None])
            run(_Job.decompose, _doubtful(jobs, run))
        return run(_Job.finish, jobs)


_SINGLE = "eigenvalues in single precision"


class _Job:
    """One matrix on its way."""

    def __init__(
        self, name: str, weight: Tensor, wanted: Wanted, cache: SpectraCache | None
    ) -> None:
        self.name, self.weight, self.wanted, self.cache = name, weight, wanted, cache
        self.content = "" if cache is None else cache.content(weight)
        self.measured = 0
        self.single = False
        known = self._recall("eigenvalues")
        if known is None and wanted.single(weight):
            self.single = True
            known = self._recall(_SINGLE)
        self.eigenvalues = None if known is None else torch.from_numpy(known).to(weight.device)

    def decompose(self) -> None:
        """Eigenvalues of this one alone."""
        with _named([self]):
            self.keep(gram_eigenvalues(self.weight, self.wanted.exact, self.single))

    def keep(self, eigenvalues: Tensor) -> None:
        """Take eigenvalues that were measured, and hand them to the cache."""
        self.eigenvalues = eigenvalues
        self._record(_SINGLE if self.single else "eigenvalues", eigenvalues.cpu().numpy())

    def finish(self) -> PartSpectrum:
        """Measure what needs more than eigenvalues."""
        assert self.eigenvalues is not None
        shape = (self.weight.shape[0], self.weight.shape[1])
        extra: dict[str, float | None] = {}
        for name in self.wanted.metrics:
            if METRICS[name].needs == "weight":
                extra[name] = self._of_weight(name)
            elif METRICS[name].needs == "shape" and name not in extra:
                extra |= bulk_metrics(self.eigenvalues.cpu().numpy(), shape)
        extra = {name: value for name, value in extra.items() if name in self.wanted.metrics}
        return PartSpectrum(shape, self.eigenvalues, extra, cached=not self.measured)

    def _of_weight(self, name: str) -> float | None:
        known = self._recall(name)
        if known is None:
            value = self._farms() if name == "farms" else self._rand_distance()
            known = np.array([math.nan if value is None else value])
            self._record(name, known)
        return None if math.isnan(known[0]) else float(known[0])

    def _farms(self) -> float | None:
        pooled = window_eigenvalues(
            self.weight, self.wanted.farms, lambda w: gram_eigenvalues(w, self.wanted.exact)
        )
        fit = measure_batch(pooled[None], ["alpha_peak"])
        gone = bool(fit.undefined["alpha_peak"][0])
        return None if gone else float(fit.values["alpha_peak"][0])

    def _rand_distance(self) -> float | None:
        assert self.eigenvalues is not None
        noise = gram_eigenvalues(shuffled(self.weight, self.wanted.seed), self.wanted.exact)
        return spectral_distance(self.eigenvalues.cpu().numpy(), noise.cpu().numpy())

    def _recall(self, what: str) -> np.ndarray | None:
        if self.cache is None:
            return None
        return self.cache.read(self.content, self.wanted.key(what, self.weight))

    def _record(self, what: str, values: np.ndarray) -> None:
        self.measured += 1
        if self.cache is not None:
            self.cache.write(self.content, self.wanted.key(what, self.weight), values)


def _doubtful(jobs: Sequence[_Job], run: _Run) -> list[_Job]:
    """Those whose eigenvalues in single precision don't settle the metrics; next time in double."""
    by_length: dict[int, list[_Job]] = {}
    for job in jobs:
        if job.single:
            by_length.setdefault(min(job.weight.shape), []).append(job)
    # A few at a time, one lot for each thread.
    lots = [
        members[i::parts]
        for members in by_length.values()
        for parts in [min(torch.get_num_threads(), len(members))]
        for i in range(parts)
    ]

    def unsettled(lot: list[_Job]) -> list[_Job]:
        stack = torch.stack([job.eigenvalues for job in lot if job.eigenvalues is not None])
        known = settled(stack, lot[0].wanted.metrics).tolist()
        return [job for job, good in zip(lot, known, strict=True) if not good]

    found = [job for lot in run(unsettled, lots) for job in lot]
    for job in found:
        job.single = False
    return found


def _decompose_batches(jobs: Sequence[_Job]) -> None:
    """On CUDA: matrices of equal shape and dtype in one call."""
    alike: dict[Any, list[_Job]] = {}
    for job in jobs:
        alike.setdefault((job.weight.shape, job.weight.dtype), []).append(job)
    for (shape, _), members in alike.items():
        step = max(1, _BATCH_WEIGHTS // shape.numel())
        for left in range(0, len(members), step):
            batch = members[left : left + step]
            with _named(batch):
                stack = torch.stack([job.weight for job in batch])
                found = gram_eigenvalues(stack, batch[0].wanted.exact)
            for job, values in zip(batch, found, strict=True):
                job.keep(values)


@contextmanager
def _named(jobs: Sequence[_Job]) -> Iterator[None]:
    """Turn the refusal of a weight that isn't finite into one that names it."""
    try:
        yield
    except ValueError as error:
        bad = [job.name for job in jobs if not bool(job.weight.isfinite().all())]
        if not bad:
            raise
        hint = "repair or re-download the model"
        raise RequestError(f"`{bad[0]}` holds NaN or Inf", hint) from error


@contextmanager
def _threads(sample: Tensor) -> Iterator[_Run]:
    """A map over matrices: threads of one BLAS thread each on a CPU, else a plain loop."""
    many = torch.get_num_threads()
    if sample.is_cuda:
        yield lambda function, items: [function(item) for item in items]
        return
    with _blas().limit(limits=1, user_api="blas"):
        if many == 1:
            yield lambda function, items: [function(item) for item in items]
            return
        # A thread of the pool would else start a team of its own for every tensor operation.
        try:
            with ThreadPoolExecutor(many, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield lambda function, items: list(pool.map(function, items))
        finally:
            torch.set_num_threads(many)  # what MKL takes from it is one setting for all threads


@functools.lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """The BLAS libraries of this process; finding them takes 3 ms, as long as half a matrix."""
    return ThreadpoolController()
