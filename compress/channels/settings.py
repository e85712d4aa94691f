"""The options of `pass-prune`, and what can't be meant by them."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from compress.channels.budget import SCOPES
from compress.channels.criteria import CRITERIA
from compress.channels.groups import KINDS
from compress.channels.standing import NORMS
from compress.errors import Fault, nearest, refuse

METHODS = ("pass", *CRITERIA, "isomorphic", "growreg")
REPAIRS = ("bn", "lsq", "none")
PROMPTS = ("pad", "expand", "none")
STES = ("identity", "sigmoid")
STATS = ("mean", "quantiles", "none")
MAPPERS = ("group", "shared")
AUGMENTS = ("flip", "crop", "mixup", "none")
PRECISIONS = ("float32", "bf16", "fp16")
DEFAULT_PRUNE = ("channels", "mlp", "heads", "head-dims")
NEEDS_DATA = ("pass", "taylor", "fisher", "isomorphic", "growreg")


@dataclass(frozen=True)
class PruneSettings:
    """What is removed, how it is chosen, what follows.

    Attributes:
        data: labelled images; None only where nothing looks at them.
        keep: share of the multiply-adds kept.
        keep_params: share of the parameters kept.
        target_latency: such as "1.5x": how many times faster than dense, in this run.
        ratio: share of the units removed from every coupled group.
        method: one of METHODS.
        scope: what is ranked together; None: global for PASS, uniform with ratio, else isomorphic.
        prune: which of KINDS may be removed.
        min_keep: share of each group's units that stays.
        round_to: channel counts become multiples of it.
        repair: bn, lsq (least squares, then batch norms), or none.
        baselines: other methods run on the same budget, repair and fine-tuning.
        calib_samples: training images that criteria and repair look at.
        batch_size: images at once.
        latency_batch: batch size that `target_latency` is about.
        skip_bad: leave out images that can't be read.
        image_size: side to which images are brought.
        new_head: a new classifier for the classes of the data.
        finetune_epochs, lr, distill, distill_temperature: training after the cut.
        head_epochs, head_lr: training of the network with its new head, before anything is chosen.
        prompt, prompt_size, drop_prompt, mask_epochs, mask_lr, hidden, ste, stats, mapper: of PASS.
        recurrent: whether its hyper-network is; False is an ablation.
        search_norms: whether the search goes by batch norms' running statistics or the batch's.
        start: a criterion whose scores the hyper-network starts from and adds to.
        prompt_share: share of the fine-tuning that sees the prompt; None: two thirds, all of it
            where the prompt is kept.
        augment: what training images go through: flip, crop, mixup, or none.
        precision: of the forward passes of search and fine-tuning.
        micro_batch: images that one process computes at once; None chooses.
        preset, dense_epochs, dense_lr: a network to train from scratch first, and how.
        growreg_epochs, growreg_lr: of the growing regularisation before its cut.
        export: forms written beside the checkpoint: onnx.
        seed, device, dtype: as in every command.
    """

    data: str | None = None
    keep: float | None = None
    keep_params: float | None = None
    target_latency: str | None = None
    ratio: float | None = None
    method: str = "pass"
    scope: str | None = None
    prune: tuple[str, ...] = DEFAULT_PRUNE
    min_keep: float = 0.1
    round_to: int = 8
    repair: str = "bn"
    baselines: tuple[str, ...] = ()
    calib_samples: int = 512
    batch_size: int = 64
    latency_batch: int = 64
    skip_bad: bool = False
    image_size: int | None = None
    new_head: bool = False
    head_epochs: int = 10
    head_lr: float = 0.01
    finetune_epochs: int = 0
    lr: float | None = None
    distill: float = 0.0
    distill_temperature: float = 2.0
    prompt: str = "pad"
    prompt_size: int | None = None
    drop_prompt: bool = True
    mask_epochs: int = 5
    mask_lr: float = 1e-3
    hidden: int = 64
    ste: str = "identity"
    stats: str = "mean"
    mapper: str = "group"
    recurrent: bool = True
    search_norms: str = "running"
    start: str | None = None
    prompt_share: float | None = None
    augment: tuple[str, ...] = ("flip", "crop")
    precision: str = "float32"
    micro_batch: int | None = None
    preset: str | None = None
    dense_epochs: int = 30
    dense_lr: float = 0.1
    growreg_epochs: int = 2
    growreg_lr: float = 0.01
    export: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def speed_wanted(self) -> float | None:
        """The factor of `target_latency`."""
        return None if self.target_latency is None else float(self.target_latency.rstrip("x"))

    def scope_of(self, method: str) -> str:
        """What a method ranks together."""
        if self.ratio is not None:
            return "uniform"
        if method == "isomorphic":
            return "isomorphic"
        return self.scope or ("global" if method == "pass" else "isomorphic")

    def resolved(self) -> PruneSettings:
        """Check everything; one budget must be given.

        Raises:
            RequestError: all faults in one.
        """
        refuse([*self._budget_faults(), *self._name_faults(), *self._number_faults()])
        return replace(self, prune=tuple(dict.fromkeys(self.prune)))

    def _budget_faults(self) -> list[Fault]:
        budgets = {
            name: getattr(self, name)
            for name in ("keep", "keep_params", "target_latency", "ratio")
            if getattr(self, name) is not None
        }
        faults = []
        if len(budgets) != 1:
            given = " and ".join(f"`{_flag(name)}`" for name in budgets)
            faults.append(
                (
                    f"{given} are two budgets" if budgets else "no budget is given",
                    "give one of --keep 0.5, --keep-params 0.5, --target-latency 1.5x, "
                    "--ratio 0.25.",
                )
            )
        for name in ("keep", "keep_params"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                faults.append((f"`{_flag(name)} {value:g}` isn't a share above 0, at most 1", ""))
        if self.ratio is not None and not 0 <= self.ratio < 1:
            faults.append((f"`--ratio {self.ratio:g}` isn't a share from 0, below 1", ""))
        if self.ratio is not None and self.scope not in (None, "uniform"):
            faults.append(
                (
                    f"`--ratio` takes the same share of every group, not `--scope {self.scope}`",
                    "leave --scope out, or give --keep.",
                )
            )
        if self.ratio is not None and "pass" in (self.method, *self.baselines):
            faults.append(
                ("`--method pass` ranks all groups together, which `--ratio` can't use",
                 "give --keep.")
            )  # fmt: skip
        if self.target_latency is not None and not _FACTOR.fullmatch(self.target_latency):
            faults.append(
                (f"`--target-latency {self.target_latency}` isn't a factor", "such as 1.5x.")
            )
        elif self.speed_wanted is not None and self.speed_wanted < 1:
            faults.append((f"`--target-latency {self.target_latency}` is slower than dense", ""))
        return faults

    def _name_faults(self) -> list[Fault]:
        choices = [
            ("method", self.method, METHODS),
            ("repair", self.repair, REPAIRS),
            ("prompt", self.prompt, PROMPTS),
            ("ste", self.ste, STES),
            ("stats", self.stats, STATS),
            ("mapper", self.mapper, MAPPERS),
            ("search-norms", self.search_norms, NORMS),
            ("precision", self.precision, PRECISIONS),
            *(("start", self.start, CRITERIA) for _ in (1,) if self.start is not None),
            *(("augment", name, AUGMENTS) for name in self.augment),
            *(("scope", self.scope, SCOPES) for _ in (1,) if self.scope is not None),
            *(("prune", kind, KINDS) for kind in self.prune),
            *(("baselines", name, METHODS) for name in self.baselines),
            *(("export", name, ("onnx",)) for name in self.export),
        ]
        faults = [
            (f"`--{name} {value}` isn't one of its names", nearest(str(value), known))
            for name, value, known in choices
            if value not in known
        ]
        if not self.prune:
            faults.append(("`--prune` is empty", f"All: {', '.join(KINDS)}."))
        if self.method == "isomorphic" and self.scope not in (None, "isomorphic"):
            faults.append(
                (f"`--method isomorphic` is Taylor ranked so, not `--scope {self.scope}`",
                 "give --method taylor.")
            )  # fmt: skip
        if self.data is None:
            faults += self._data_faults()
        return faults

    def _data_faults(self) -> list[Fault]:
        wanting = [
            *(f"`--method {m}`" for m in (self.method, *self.baselines) if m in NEEDS_DATA),
            *(f"`--repair {self.repair}`" for _ in (1,) if self.repair != "none"),
            *(
                f"`{_flag(name)}`"
                for name in ("finetune_epochs", "new_head", "preset")
                if getattr(self, name)
            ),
        ]
        if not wanting:
            return []
        return [(f"{wanting[0]} needs labelled images", "give --data DIR, ZIP, PARQUET or a name.")]

    def _number_faults(self) -> list[Fault]:
        faults = []
        if not 0 <= self.min_keep <= 1:
            faults.append((f"`--min-keep {self.min_keep:g}` isn't a share from 0 to 1", ""))
        whole = ("round_to", "calib_samples", "batch_size", "latency_batch", "image_size")
        counted = ("mask_epochs", "growreg_epochs", "head_epochs", "dense_epochs")
        for name in (*whole, *counted, "hidden", "prompt_size", "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                faults.append((f"`{_flag(name)} {value}` is less than 1", ""))
        if self.finetune_epochs < 0:
            faults.append((f"`--finetune-epochs {self.finetune_epochs}` is below 0", ""))
        rates = ("lr", "mask_lr", "growreg_lr", "head_lr", "dense_lr")
        for name in (*rates, "distill_temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                faults.append((f"`{_flag(name)} {value:g}` isn't a positive number", ""))
        share = self.prompt_share
        if share is not None and not 0 <= share <= 1:
            faults.append((f"`--prompt-share {share:g}` isn't a share from 0 to 1", ""))
        if share is not None and self.drop_prompt and share == 1:
            faults.append(
                ("`--prompt-share 1` leaves a network that needs its prompt", "add --keep-prompt.")
            )
        if not 0 <= self.distill <= 1:
            faults.append((f"`--distill {self.distill:g}` isn't a share from 0 to 1", ""))
        return faults


_FACTOR = re.compile(r"\d+(\.\d+)?x?")
NAMES = tuple(field.name for field in fields(PruneSettings))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
