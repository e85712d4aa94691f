"""The options of `lowrank-svd`: defaults, and all that can be checked before anything is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.data.packing import SELECTIONS
from compress.data.windows import SAMPLINGS
from compress.errors import Fault, nearest, refuse
from compress.evaluation.settings import EvaluationSettings

METHODS = ("svd", "asvd", "whiten", "sequential", "kfac")
ALLOCATIONS = ("knapsack", "uniform", "energy", "greedy", "lems", "svdllm-v2", "swift")
SHARES = ("qkv", "gate-up")
SIZES = ("keep", "keep_model", "rank", "rank_ratio", "energy", "budget_ms")
FIXED = ("rank", "rank_ratio")  # they say every layer's rank


@dataclass(frozen=True)
class LowRankSettings(EvaluationSettings):
    """Everything that decides what `lowrank-svd` does to a model.

    Attributes:
        keep: share of the chosen layers' weights that their factors may hold, in (0, 1].
        keep_model: the same of the whole model, embeddings and all.
        rank: one rank for every layer.
        rank_ratio: a rank as a share of a layer's smaller side, in (0, 1].
        energy: share of a layer's output energy that its rank keeps, in (0, 1].
        budget_ms: milliseconds that a forward may take here; as much is kept as allows that. At
            most one of these six is given; none is keep 0.8.
        budget_tokens: tokens of that forward.
        method: how the factors of a layer are made, one of METHODS.
        alloc: how ranks are spread, one of ALLOCATIONS, or a JSON file; None is knapsack, or what
            rank, rank_ratio and energy say.
        include, exclude: globs of layer names, or attention, ffn, conv, all.
        share: which layers of one input share a down factor, of SHARES.
        round: ranks are multiples of this; None is 8, less where layers are small.
        min_rank: least rank of a layer.
        damp: shrinkage of Gram matrices to their mean diagonal: a share, or auto: 0.01 where a
            layer saw fewer than 10 tokens a feature, else 0.
        beta: of the sequential method: how much of the dense model's inputs the target has; auto is
            chosen on held-out tokens.
        asvd_power: of ASVD's column scales.
        mean_correction: biases take up what the mean input loses.
        factor_dtype: of the factors in OUT; auto is the layer's own.
        trial_samples: sequences on which lems and swift try whole models.
        gradient_samples: sequences from which kfac takes output gradients.
        save_stats, load_stats: where the statistics of the inputs are kept, or taken from.
        recover: steps of fine-tuning of the factors towards the dense model's outputs.
        recover_lr: its learning rate.
        calib, samples, seqlen, batch_size, doc_sampling, select, chat_template, allow_leakage,
            registry: the calibration text, as in alpha-prune.
        ppl, tasks, task_dirs, limit, stride, eval_seqlen, speed: what is scored before and after.
        wer: recordings on which a speech model's word error rate is scored.
        resample: convert recordings of another rate than the model's.
        seed, device, dtype: as in every command.
    """

    keep: float | None = None
    keep_model: float | None = None
    rank: int | None = None
    rank_ratio: float | None = None
    energy: float | None = None
    budget_ms: float | None = None
    budget_tokens: int = 256
    method: str = "sequential"
    alloc: str | None = None
    include: tuple[str, ...] = ("all",)
    exclude: tuple[str, ...] = ()
    share: tuple[str, ...] = ()
    round: int | None = None
    min_rank: int = 1
    damp: str | float = "auto"
    beta: str | float = "auto"
    asvd_power: float = 0.5
    mean_correction: bool = True
    factor_dtype: str = "auto"
    trial_samples: int = 8
    gradient_samples: int = 16
    save_stats: str | None = None
    load_stats: str | None = None
    recover: int = 0
    recover_lr: float = 1e-4
    calib: str = "c4"
    samples: int = 128
    seqlen: int | None = None
    batch_size: int = 1
    doc_sampling: str = "packed"
    select: str = "random"
    chat_template: bool = True
    allow_leakage: bool = False
    registry: str | None = None
    wer: tuple[str, ...] = ()
    resample: bool = False
    device: str = "auto"
    dtype: str = "auto"

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def size(self) -> tuple[str, float]:
        """How much is kept: which of SIZES, and its value."""
        given = [(name, getattr(self, name)) for name in SIZES if getattr(self, name) is not None]
        return given[0] if given else ("keep", 0.8)

    @property
    def rule(self) -> str:
        """How ranks are spread: one of ALLOCATIONS, `fixed`, or `file`."""
        if self.alloc is not None:
            return self.alloc if self.alloc in ALLOCATIONS else "file"
        name, _ = self.size
        return "fixed" if name in FIXED else "energy" if name == "energy" else "knapsack"

    @property
    def tries(self) -> bool:
        """Whether whole models are tried to find the ranks."""
        return self.rule in ("lems", "swift")

    @property
    def measures(self) -> bool:
        """Whether the dense model's inputs of the layers are needed before ranks are spread."""
        kept = self.save_stats is not None or self.load_stats is not None
        spreads = self.rule not in ("fixed", "file")
        needs = self.method in ("asvd", "whiten", "kfac") or self.tries
        return kept or needs or (self.sequential and spreads)

    @property
    def sequential(self) -> bool:
        """Whether factors are fitted behind those of the layers before."""
        return self.method == "sequential"

    @property
    def needs_data(self) -> bool:
        """Whether calibration text is read at all."""
        runs = self.measures and self.load_stats is None
        return runs or self.method in ("sequential", "kfac") or self.tries or self.recover > 0

    def check(self) -> None:
        """Refuse what can't be meant, all faults in one error.

        Raises:
            RequestError: one or more settings are wrong.
        """
        refuse([*self._size_faults(), *self._name_faults(), *self._number_faults()])

    def _size_faults(self) -> list[Fault]:
        faults: list[Fault] = []
        given = [name for name in SIZES if getattr(self, name) is not None]
        options = [f"`--{name.replace('_', '-')}`" for name in given]
        if len(given) > 1:
            faults.append((f"{' and '.join(options)} each say how much is kept", "give one."))
        for name in ("keep", "keep_model", "rank_ratio", "energy"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                option = f"--{name.replace('_', '-')}"
                faults.append((f"`{option} {value:g}` is outside (0, 1]", "0.8 keeps 80 %."))
        if self.rank is not None and self.rank < 1:
            faults.append((f"`--rank {self.rank}` is less than 1", ""))
        if self.budget_ms is not None and not 0 < self.budget_ms < float("inf"):
            faults.append((f"`--budget-ms {self.budget_ms:g}` isn't positive", ""))
        name, _ = self.size
        if self.alloc is None or len(given) > 1:
            return faults
        if name == "budget_ms" and self.tries:
            faults.append(
                (
                    f"`--budget-ms` tries many shares, each of which `--alloc {self.alloc}` takes "
                    "long for",
                    "plan by knapsack, or give `--keep`.",
                )
            )
        if name in FIXED and self.alloc != "uniform":
            faults.append(
                (
                    f"{options[0]} says every layer's rank, so `--alloc {self.alloc}` can't act",
                    "leave one of them out.",
                )
            )
        if name == "energy" and self.alloc != "energy":
            faults.append(
                (
                    f"`--energy` decides each layer by itself, so `--alloc {self.alloc}` can't act",
                    "leave one of them out.",
                )
            )
        if self.rule == "file" and given:
            faults.append((f"`--alloc {self.alloc}` and {options[0]} both say the ranks", ""))
        return faults

    def _name_faults(self) -> list[Fault]:
        choices: list[tuple[str, str, tuple[str, ...]]] = [
            ("method", self.method, METHODS),
            ("doc-sampling", self.doc_sampling, SAMPLINGS),
            ("select", self.select, SELECTIONS),
            *(("share", name, SHARES) for name in self.share),
        ]
        if self.rule == "file" and not Path(str(self.alloc)).is_file():
            choices.append(("alloc", str(self.alloc), ALLOCATIONS))
        faults = [
            (f"`--{option} {value}` isn't known", nearest(value, known))
            for option, value, known in choices
            if value not in known
        ]
        if not self.include:
            faults.append(("`--include` is empty: no layer is chosen", "the default is all."))
        return faults

    def _number_faults(self) -> list[Fault]:
        faults: list[Fault] = []
        counts = ("round", "min_rank", "trial_samples", "gradient_samples", "budget_tokens")
        for name in (*counts, "samples", "seqlen", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                faults.append((f"`--{name.replace('_', '-')} {value}` is less than 1", ""))
        for name in ("damp", "beta"):
            value = getattr(self, name)
            if value != "auto" and not _is_share(value):
                faults.append((f"`--{name} {value}` is neither auto nor in [0, 1]", ""))
        if self.recover < 0:
            faults.append((f"`--recover {self.recover}` is below 0", "it counts steps."))
        if not 0 < self.recover_lr < float("inf"):
            faults.append((f"`--recover-lr {self.recover_lr:g}` isn't positive", ""))
        if not 0 <= self.asvd_power <= 2:
            faults.append((f"`--asvd-power {self.asvd_power:g}` is outside [0, 2]", ""))
        if self.save_stats is not None and self.load_stats is not None:
            faults.append(("`--save-stats` and `--load-stats` can't go together", "give one."))
        return faults


def _is_share(value: object) -> bool:
    try:
        return 0 <= float(str(value)) <= 1
    except ValueError:
        return False
