"""The options of `alpha-prune`: defaults, and all that can be checked before anything is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from compress.data.packing import SELECTIONS
from compress.data.windows import SAMPLINGS
from compress.errors import Fault, RequestError, nearest, refuse
from compress.evaluation.settings import EvaluationSettings
from compress.sparsity.allocation_checks import allocation_faults
from compress.sparsity.allocators.table import ALLOCATORS
from compress.sparsity.patterns import parse_pattern
from compress.sparsity.refit_block import BlockRefit

METHODS = ("magnitude", "wanda", "sparsegpt", "ria", "admm", "alps", "dsnot")
REFITS = ("none", "exact", "cg", "block")
ALLOCATIONS = tuple(ALLOCATORS)
FORMATS = ("dense", "bitmask")
PROPAGATION = ("pruned", "dense", "true-sequential")
ROWS = ("even", "trim")


@dataclass(frozen=True)
class AlphaPruneSettings(EvaluationSettings):
    """Everything that decides what `alpha-prune` does to a model.

    Attributes:
        sparsity: fraction of the blocks' weights to remove, in [0, 1).
        method: how weights are chosen in a matrix, one of METHODS.
        refit: how the weights that a mask keeps get new values, one of REFITS.
        refit_steps, refit_lr: of the refit of whole blocks: steps of Adam, and learning rate as a
            share of a matrix's root mean square weight.
        allocation: how much each matrix loses, a name of ALLOCATORS.
        metric: shape metric of the alpha allocation, a name of spectra.METRICS.
        metric_sign: 1 prunes a larger metric more, -1 less; auto is the metric's own sign.
        epsilon: half the spread of the ratios around 1 (alpha, farms), in [0, 1).
        granularity: one share per `block` or per `matrix`, or `mixed`, the mean of both; None is
            the allocator's own.
        pattern: "N:M", keep N of every M consecutive inputs; the shares are then equal. "mixed:M"
            gives each matrix the N that its share is nearest to.
        channel_permutation: reorder the channels inside blocks so that the pattern keeps more.
        min_sparsity, max_sparsity: bounds of each matrix's share.
        compare_allocations: prune by uniform shares, a straight line and atp as well, in the same
            walk, and score them beside.
        rows: what the rows of a matrix lose: `even` leaves that to the method, `trim` chooses it by
            what each output keeps, beside any allocation. The allocation trim is uniform with it.
        skip: globs of module names that stay as they are.
        calib: data specs of the calibration text, mixed by their shares of the tokens.
        registry: a file of own corpora beside the shipped ones.
        doc_sampling: how documents become windows: packed, isolated or long.
        select: which windows are taken: random, diverse or cola.
        chat_template: write prompt formats as conversations where the tokenizer has a template.
        allow_leakage: let text be calibrated on and evaluated on.
        samples, seqlen: calibration size in sequences and tokens; seqlen None is the smaller of
            2048 and the model's limit.
        propagate: what later blocks see: `pruned` outputs, `dense` ones, or `true-sequential`.
        damp: of the Hessians of sparsegpt, admm, alps and the refit.
        block_size: SparseGPT's column block.
        farms_window, farms_aspect, farms_grid: rows of FARMS' windows, columns per row, and places
            along each side.
        owl_multiple, owl_spread: OWL's M and lambda.
        dlp_mean, dlp_spread: DLP's `mean` or `median` of the scores, and its a (None: by sparsity).
        atp_beta: rise of ATP's line from block to block, or auto: searched.
        atp_candidates: slopes that the search tries.
        atp_held_out: windows held out for the search; None is an eighth of samples, at least 4.
        esd_exact: eigenvalues by fp64 singular values instead of Gram matrices.
        ppl, tasks, task_dirs, limit, stride, eval_seqlen, speed: what is measured before and after.
        seed: of every random choice.
        device, dtype: where the walk runs; type of the weights in OUT.
        format: how zeros are stored in OUT, dense or bitmask.
    """

    sparsity: float | None = None
    method: str = "wanda"
    refit: str = "none"
    refit_steps: int = 100
    refit_lr: float = 0.01
    allocation: str | None = None
    metric: str = "alpha_peak"
    metric_sign: str | int = "auto"
    epsilon: float = 0.3
    granularity: str | None = None
    pattern: str | None = None
    channel_permutation: bool = False
    min_sparsity: float = 0.0
    max_sparsity: float = 0.99
    rows: str = "even"
    compare_allocations: bool = False
    skip: tuple[str, ...] = ()
    calib: str = "c4"
    registry: str | None = None
    doc_sampling: str = "packed"
    select: str = "random"
    chat_template: bool = True
    allow_leakage: bool = False
    samples: int = 128
    seqlen: int | None = None
    batch_size: int = 1
    propagate: str = "pruned"
    damp: float = 0.01
    block_size: int = 128
    farms_window: int = 2000
    farms_aspect: float = 1.0
    farms_grid: int = 10
    owl_multiple: float = 5.0
    owl_spread: float = 0.08
    dlp_mean: str = "mean"
    dlp_spread: float | None = None
    atp_beta: str | float = "auto"
    atp_candidates: int = 6
    atp_held_out: int | None = None
    esd_exact: bool = False
    device: str = "auto"
    dtype: str = "auto"
    format: str = "dense"

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def nm(self) -> tuple[int, int] | None:
        """The pattern as (N, M); None without one and where it is mixed."""
        found = None if self.pattern is None else parse_pattern(self.pattern)
        return None if found is None or found.kept is None else (found.kept, found.of)

    @property
    def mixed(self) -> int | None:
        """M where each matrix has its own N of M."""
        found = None if self.pattern is None else parse_pattern(self.pattern)
        return found.of if found is not None and found.kept is None else None

    @property
    def share(self) -> float:
        """The sparsity asked for, or that of the pattern."""
        if self.nm is not None:
            return 1 - self.nm[0] / self.nm[1]
        return 0.6 if self.sparsity is None else self.sparsity

    @property
    def rule(self) -> str:
        """The allocation asked for; one N:M leaves only equal shares."""
        fixed = self.pattern is not None and not self.pattern.lower().startswith("mixed")
        return self.allocation or ("uniform" if fixed else "alpha")

    @property
    def grain(self) -> str:
        """What has a share of its own: block, matrix or mixed."""
        return self.granularity or ALLOCATORS[self.rule].grains[0]

    @property
    def trims(self) -> bool:
        """Whether TRIM chooses what the rows of a matrix lose."""
        return "trim" in (self.rows, self.rule)

    @property
    def searches(self) -> bool:
        """Whether the slope of a line is searched on held-out windows."""
        return self.atp_beta == "auto" if self.rule == "atp" else self.compare_allocations

    @property
    def held_out(self) -> int:
        """Windows of calibration text that are held out for a search."""
        if not self.searches:
            return 0
        return max(4, self.samples // 8) if self.atp_held_out is None else self.atp_held_out

    @property
    def needs_inputs(self) -> bool:
        """Whether pruning needs the inputs of the matrices."""
        replayed = self.refit != "none" or self.channel_permutation
        return self.method != "magnitude" or replayed or self.trims

    @property
    def block_refit(self) -> BlockRefit | None:
        """How whole blocks are refitted, or None."""
        if self.refit != "block":
            return None
        return BlockRefit(self.refit_steps, self.refit_lr, self.seed)

    @property
    def needs_data(self) -> bool:
        """Whether calibration text is read at all."""
        measured = self.rule != "atp" and ALLOCATORS[self.rule].data
        return self.needs_inputs or measured or self.searches

    def check(self, metrics: tuple[str, ...]) -> None:
        """Refuse what can't be meant, all faults in one error.

        Args:
            metrics: names that `metric` may have.

        Raises:
            RequestError: one or more settings are wrong.
        """
        refuse(
            [
                *self._name_faults(metrics),
                *self._number_faults(),
                *allocation_faults(self),
                *self._pattern_faults(),
                *self._replay_faults(),
            ]
        )

    def _name_faults(self, metrics: tuple[str, ...]) -> list[Fault]:
        choices = [
            ("method", self.method, METHODS),
            ("refit", self.refit, REFITS),
            ("allocation", self.rule, ALLOCATIONS),
            ("metric", self.metric, metrics),
            ("metric-sign", str(self.metric_sign), ("auto", "1", "-1")),
            ("dlp-mean", self.dlp_mean, ("mean", "median")),
            ("propagate", self.propagate, PROPAGATION),
            ("rows", self.rows, ROWS),
            ("format", self.format, FORMATS),
            ("doc-sampling", self.doc_sampling, SAMPLINGS),
            ("select", self.select, SELECTIONS),
        ]
        return [
            (f"`--{option} {value}` isn't {_article(option)} {option}", nearest(value, known))
            for option, value, known in choices
            if value not in known
        ]

    def _number_faults(self) -> list[Fault]:
        faults = []
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            faults.append(
                (f"`--sparsity {self.sparsity:g}` is outside [0, 1)", "0.6 removes 60 %.")
            )
        if not 0 <= self.epsilon < 1:
            faults.append(
                (f"`--epsilon {self.epsilon:g}` is outside [0, 1)", "the default is 0.3.")
            )
        if not 0 <= self.min_sparsity <= self.max_sparsity <= 1:
            faults.append(
                (
                    f"`--min-sparsity {self.min_sparsity:g}` and `--max-sparsity "
                    f"{self.max_sparsity:g}` aren't 0 <= min <= max <= 1",
                    "",
                )
            )
        for option, value in (("samples", self.samples), ("seqlen", self.seqlen)):
            if value is not None and value < 1:
                faults.append((f"`--{option} {value}` is less than 1", ""))
        if not self.damp > 0:
            faults.append((f"`--damp {self.damp:g}` isn't positive", "the default is 0.01."))
        return faults

    def _replay_faults(self) -> list[Fault]:
        """What can't be meant of the options that run blocks again."""
        faults = []
        if self.channel_permutation and self.pattern is None:
            faults.append(
                (
                    "`--channel-permutation` has no `--pattern`: only inside its groups does the "
                    "order of channels matter",
                    "add `--pattern 2:4`.",
                )
            )
        for option, asked in (
            ("--refit block", self.refit == "block"),
            ("--channel-permutation", self.channel_permutation),
        ):
            if asked and self.propagate == "dense":
                faults.append(
                    (
                        f"`{option}` runs blocks again, which `--propagate dense` has done with",
                        "use `--propagate pruned`.",
                    )
                )
        if self.refit_steps < 1:
            faults.append((f"`--refit-steps {self.refit_steps}` is less than 1", ""))
        if not 0 < self.refit_lr < float("inf"):
            faults.append((f"`--refit-lr {self.refit_lr:g}` isn't positive", ""))
        return faults

    def _pattern_faults(self) -> list[Fault]:
        if self.pattern is None:
            return []
        try:
            kept, of = parse_pattern(self.pattern)
        except RequestError as error:
            return [(error.message, error.hint or "")]
        faults = []
        if self.method == "sparsegpt" and self.block_size % of:
            faults.append((f"`--block-size {self.block_size}` isn't a multiple of {of}", ""))
        if kept is None:
            return faults
        implied = 1 - kept / of
        if self.sparsity is not None and abs(self.sparsity - implied) > 1e-9:
            faults.append(
                (
                    f"`--pattern {self.pattern}` removes {implied:g} of the weights, not "
                    f"`--sparsity {self.sparsity:g}`",
                    "leave `--sparsity` out.",
                )
            )
        if not self.min_sparsity <= implied <= self.max_sparsity:
            faults.append(
                (
                    f"`--pattern {self.pattern}` removes {implied:g} of every matrix, outside "
                    f"`--min-sparsity {self.min_sparsity:g}` to `--max-sparsity "
                    f"{self.max_sparsity:g}`",
                    "only that share can be reached.",
                )
            )
        if self.rule != "uniform":
            faults.append(
                (
                    f"`--pattern {self.pattern}` fixes every matrix's share, so `--allocation "
                    f"{self.rule}` can't act",
                    "leave `--allocation` out.",
                )
            )
        return faults


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"
