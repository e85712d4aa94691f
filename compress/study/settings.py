"""The options of `calib-study`: defaults, and all that can be checked before anything is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from compress.backends import BACKENDS
from compress.errors import Fault, RequestError, near_names, refuse
from compress.evaluation.settings import ScoringSettings
from compress.sparsity.patterns import parse_pattern
from compress.sparsity.settings import ALLOCATIONS, METHODS, AlphaPruneSettings
from compress.spectra.metrics import METRICS

STATS = ("exact", "dense")
CONTROLS = ("full", "none")


@dataclass(frozen=True)
class Setting:
    """One way to prune.

    Attributes:
        method: a name of sparsity.settings.METHODS.
        allocation: a name of ALLOCATIONS.
        sparsity: share of the weights that goes; that of the pattern where there is one.
        pattern: "N:M" or None.
    """

    method: str
    allocation: str
    sparsity: float
    pattern: str | None = None

    @property
    def label(self) -> str:
        """Its name in tables: "wanda 0.5", "sparsegpt 2:4", "wanda alpha 0.6"."""
        rule = "" if self.allocation == "uniform" else f" {self.allocation}"
        return f"{self.method}{rule} {self.pattern or f'{self.sparsity:g}'}"

    def as_dict(self) -> dict[str, Any]:
        """The setting as JSON types; no pattern is absent."""
        return {k: v for k, v in asdict(self).items() if v is not None}


@dataclass(frozen=True)
class StudySettings(ScoringSettings):
    """Everything that decides what `calib-study` compares.

    Attributes:
        calib: data specs of the calibration sets, each a corpus with or without `@FORMAT`.
        formats: prompt formats for the specs that name none; a spec is then tried in each.
        methods, sparsity, patterns, allocations: the ways to prune, crossed; patterns stand beside
            the sparsities.
        seeds: how many draws of each calibration set, from `seed` on.
        samples, seqlen, batch_size: size of a calibration set, as in alpha-prune.
        stats: `exact` collects a block's statistics behind the pruned blocks before it, `dense`
            those of all blocks in one pass of the dense model.
        reference: the spec that all are compared with; None is the first.
        ppl, tasks, task_dirs, limit, stride, eval_seqlen: what scores a pruned model.
        eval_batch_size: windows scored at once; with 1 the scores are alpha-prune's to the last
            bit.
        controls: `full` runs the null controls and bad ends, `none` leaves them out.
        predictors: say how well cheap predictors would have ranked the sets.
        allow_leakage: calibrate on what is evaluated on, against the rules.
        budget: seconds after which no further calibration set is begun.
        shard: (i, n), the i-th of n parts of the study; None is all of it.
        backend: where calibration sets are worked on: `local`, or `ray`.
        reuse: finished studies or shards whose equal cells are taken over.
        registry: file with further corpora.
        doc_sampling, select, pool, chat_template: how windows are made and chosen, as in
            alpha-prune; pool: candidates for each window that is chosen.
        disjoint: the draws of a set share no window.
        damp, block_size, skip: as in alpha-prune.
        bootstrap: resamples of the crossed bootstrap.
        seed: of the first draw, and of the bootstrap.
        device, dtype: as in alpha-prune.
    """

    calib: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("wanda",)
    sparsity: tuple[float, ...] = ()
    patterns: tuple[str, ...] = ()
    allocations: tuple[str, ...] = ("uniform",)
    seeds: int = 5
    samples: int = 128
    seqlen: int | None = None
    batch_size: int = 1
    stats: str = "exact"
    reference: str | None = None
    eval_batch_size: int = 1
    controls: str = "full"
    allow_leakage: bool = False
    predictors: bool = True
    budget: float | None = None
    shard: tuple[int, int] | None = None
    backend: str = "local"
    reuse: tuple[str, ...] = ()
    registry: str | None = None
    doc_sampling: str = "packed"
    select: str = "random"
    pool: int = 4
    chat_template: bool = True
    disjoint: bool = False
    damp: float = 0.01
    block_size: int = 128
    skip: tuple[str, ...] = ()
    bootstrap: int = 10_000
    device: str = "auto"
    dtype: str = "auto"

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def settings(self) -> list[Setting]:
        """The ways to prune, methods outermost."""
        found = []
        for method in self.methods:
            for rule in self.allocations:
                found += [Setting(method, rule, share) for share in self.shares]
            for pattern in self.patterns:
                n, m = (int(part) for part in pattern.split(":"))
                found.append(Setting(method, "uniform", 1 - n / m, pattern))
        return found

    @property
    def shares(self) -> tuple[float, ...]:
        """The sparsities: one half where neither a sparsity nor a pattern was asked for."""
        return self.sparsity or (() if self.patterns else (0.5,))

    @property
    def draws(self) -> tuple[int, ...]:
        """The seeds of the calibration sets."""
        return tuple(range(self.seed, self.seed + self.seeds))

    def pruning(self, setting: Setting) -> AlphaPruneSettings:
        """What `alpha-prune` would be asked for one way to prune."""
        return AlphaPruneSettings(
            method=setting.method,
            allocation=setting.allocation,
            sparsity=None if setting.pattern else setting.sparsity,
            pattern=setting.pattern,
            samples=self.samples,
            seqlen=self.seqlen,
            batch_size=self.batch_size,
            propagate="dense" if self.stats == "dense" else "pruned",
            doc_sampling=self.doc_sampling,
            select=self.select,
            damp=self.damp,
            block_size=self.block_size,
            skip=self.skip,
            device=self.device,
            dtype=self.dtype,
        )

    def check(self) -> None:
        """Refuse what can't be meant, all faults in one error.

        Raises:
            RequestError: one or more settings are wrong.
        """
        refuse([*self._name_faults(), *self._number_faults(), *self._other_faults()])
        for setting in self.settings:
            self.pruning(setting).check(tuple(METRICS))

    def _name_faults(self) -> list[Fault]:
        named = [
            *(("method", name, METHODS) for name in self.methods),
            *(("allocation", name, ALLOCATIONS) for name in self.allocations),
            ("stats", self.stats, STATS),
            ("backend", self.backend, BACKENDS),
            ("controls", self.controls, CONTROLS),
        ]
        faults = [
            (f"`{value}` isn't a {option}", near_names(value, known))
            for option, value, known in named
            if value not in known
        ]
        if "atp" in self.allocations:
            faults.append(
                ("`atp` searches its slope anew for every model", "use it with `alpha-prune`")
            )
        lists = [
            *(("--calib", self.calib), ("--formats", self.formats), ("--methods", self.methods)),
            *(("--sparsity", self.sparsity), ("--patterns", self.patterns)),
            ("--allocations", self.allocations),
        ]
        for option, values in lists:
            twice = sorted({str(v) for v in values if list(values).count(v) > 1})
            if twice:
                faults.append((f"`{option}` names `{twice[0]}` twice", ""))
        return faults

    def _number_faults(self) -> list[Fault]:
        faults = []
        counts = [
            *(("seeds", self.seeds), ("samples", self.samples), ("seqlen", self.seqlen)),
            *(("batch-size", self.batch_size), ("eval-batch-size", self.eval_batch_size)),
            *(("bootstrap", self.bootstrap), ("pool", self.pool)),
        ]
        for option, value in counts:
            if value is not None and value < 1:
                faults.append((f"`--{option} {value}` is less than 1", ""))
        if self.seed < 0:
            faults.append((f"`--seed {self.seed}` is below zero", ""))
        for share in self.sparsity:
            if not 0 < share < 1:
                faults.append((f"`--sparsity {share:g}` is outside (0, 1)", "0.5 removes 50 %"))
        if self.budget is not None and not self.budget > 0:
            faults.append((f"`--budget {self.budget:g}` isn't positive", "30m, 2h, 90s"))
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            i, n = self.shard
            faults.append((f"`--shard {i}/{n}` isn't i of n with 1 <= i <= n", "1/4 to 4/4"))
        return faults

    def _other_faults(self) -> list[Fault]:
        faults = []
        if not self.calib:
            faults.append(("no calibration data to compare", "`--calib demo,FILE.jsonl`"))
        if not (self.ppl or self.tasks):
            faults.append(
                ("nothing tells good pruning from bad", "add `--ppl FILE` or `--tasks NAME`")
            )
        for pattern in self.patterns:
            try:
                kept = parse_pattern(pattern).kept
            except RequestError as error:
                faults.append((error.message, error.hint or ""))
                continue
            if kept is None:
                faults.append((f"`--patterns {pattern}`: only fixed N:M", "such as 2:4"))
        return faults
