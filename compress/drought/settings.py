"""The options of `train-side`, and what can't be meant by them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any

from compress.drought.fitting import FitOptions
from compress.drought.reading import parse_date
from compress.drought.table import TARGETS
from compress.errors import Fault, nearest, refuse
from compress.training.optimizers import OPTIMIZERS

AUTO = "auto"
IMPACT_LOSSES = ("bce", "poisson")
TASKS = ("severity", "impact")
FILLS = ("forward",)
BASELINES = ("all", "none")
FURTHEST = 104  # weeks


@dataclass(frozen=True)
class SideSettings:
    """What `train-side` is asked for.

    Attributes:
        series, texts, impact: files.
        target: dsci or worst-category.
        horizons: in weeks; 0 is the nowcast.
        context: weeks that a window looks back over.
        split: shares of the weeks for train, validation and test.
        val_from, test_from: first days of these parts, instead of shares.
        regions: places to keep; all if none is named.
        transfer_to: places that are tested on only, the others being trained on only.
        fill: "forward" carries up to two missing weeks.
        embargo: weeks after a border that are no anchors.
        unsafe_random_split: deal weeks out at random.
        mask_label_terms: take the label's terms out of texts; None does where 0 is a horizon.
        shuffle_texts: a null control: texts dealt out to other weeks.
        encoder: a directory; "tfidf"; or "auto": a small one from the Hub, else tfidf.
        hidden, dropout: of the model.
        impact_loss: bce (whether there is an impact) or poisson (how many).
        task_weight: "learned", or a fixed factor of the impact loss.
        no_text, no_physical, no_cross: parts left out.
        single_task: "severity" or "impact": the only one trained.
        baselines: all or none (persistence and climatology always).
        seeds: how many models, from `seed` on.
        optimizer, lr, weight_decay, epochs, patience, batch_size: of the training.
        seed, device: as everywhere.
    """

    series: str = ""
    texts: str | None = None
    impact: str | None = None
    target: str = "dsci"
    horizons: tuple[int, ...] = (0, 1, 4, 8, 13)
    context: int = 26
    split: tuple[float, ...] = (0.7, 0.15, 0.15)
    val_from: str | None = None
    test_from: str | None = None
    regions: tuple[str, ...] = ()
    transfer_to: tuple[str, ...] = ()
    fill: str | None = None
    embargo: int = 0
    unsafe_random_split: bool = False
    mask_label_terms: bool | None = None
    shuffle_texts: bool = False
    encoder: str = AUTO
    hidden: int = 64
    dropout: float = 0.1
    impact_loss: str = "bce"
    task_weight: str = "learned"
    no_text: bool = False
    no_physical: bool = False
    no_cross: bool = False
    single_task: str | None = None
    baselines: str = "all"
    seeds: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-2
    epochs: int = 100
    patience: int = 10
    batch_size: int = 64
    seed: int = 0
    device: str = "auto"

    def resolved(self) -> SideSettings:
        """Return the settings in one form, checked.

        Raises:
            RequestError: one or more of them can't be meant; all are named.
        """
        tidy = replace(
            self,
            series=str(self.series),
            texts=None if self.texts is None else str(self.texts),
            impact=None if self.impact is None else str(self.impact),
            encoder=str(self.encoder),
            task_weight=str(self.task_weight),
            horizons=tuple(sorted(set(self.horizons))),
            split=tuple(self.split),
            regions=tuple(self.regions),
            transfer_to=tuple(self.transfer_to),
        )
        refuse(tidy._faults())
        return tidy

    def as_dict(self) -> dict[str, Any]:
        """JSON types, without what wasn't asked for."""
        found = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: v for k, v in found.items() if v is not None}

    @property
    def masks(self) -> bool:
        """Whether the label's terms are taken out of texts."""
        return 0 in self.horizons if self.mask_label_terms is None else self.mask_label_terms

    @property
    def tasks(self) -> tuple[str, ...]:
        """What is trained."""
        return TASKS if self.single_task is None else (self.single_task,)

    @property
    def dates(self) -> dict[str, date | None]:
        """Borders given as dates."""
        return {
            key: None if value is None else parse_date(value)
            for key, value in (("val_from", self.val_from), ("test_from", self.test_from))
        }

    def fit_options(self) -> FitOptions:
        """How a model is trained."""
        return FitOptions(
            self.lr, self.weight_decay, self.optimizer, self.epochs, self.patience,
            self.batch_size, task_weight=self.task_weight, impact_loss=self.impact_loss,
        )  # fmt: skip

    def _faults(self) -> Iterator[Fault]:
        if not self.series or self.series == "None":
            yield "no series", "add `--series FILE`, weekly severity by place."
        yield from self._choices()
        yield from self._numbers()
        if len(self.split) != 3 or any(not 0 < s < 1 for s in self.split):
            yield f"`--split` is {_listed(self.split)}", "three shares, such as 0.7,0.15,0.15."
        elif abs(sum(self.split) - 1) > 1e-6:
            yield f"the shares of `--split` sum to {sum(self.split):g}", "they sum to 1."
        for key, value in self.dates.items():
            given = getattr(self, key)
            if given is not None and value is None:
                yield f"`--{key.replace('_', '-')} {given}` isn't a date", "2020-09-22 is one."
        if not self.horizons or not all(0 <= h <= FURTHEST for h in self.horizons):
            yield f"`--horizons` is {_listed(self.horizons)}", f"weeks from 0 to {FURTHEST}."
        if self.texts is None:
            for name, on in (("--encoder", self.encoder != AUTO), ("--no-text", self.no_text),
                             ("--shuffle-texts", self.shuffle_texts)):  # fmt: skip
                if on:
                    yield f"`{name}` needs texts", "add `--texts FILE`, or leave it out."
        if self.impact is None and self.single_task == "impact":
            yield "`--single-task impact` needs impacts", "add `--impact FILE`."
        if self.no_text and self.no_physical:
            yield "`--no-text` and `--no-physical` leave nothing", "give one of them."

    def _choices(self) -> Iterator[Fault]:
        for name, value, known in (
            ("--target", self.target, TARGETS),
            ("--impact-loss", self.impact_loss, IMPACT_LOSSES),
            ("--single-task", self.single_task, TASKS),
            ("--fill", self.fill, FILLS),
            ("--baselines", self.baselines, BASELINES),
            ("--optimizer", self.optimizer, tuple(OPTIMIZERS)),
        ):
            if value is not None and value not in known:
                yield f"`{name} {value}` isn't a choice", nearest(value, known)
        if self.task_weight != "learned":
            try:
                weight = float(self.task_weight)
            except ValueError:
                weight = math.nan
            if not 0 <= weight < math.inf:
                yield f"`--task-weight {self.task_weight}` isn't a weight", "learned, or 1.0."

    def _numbers(self) -> Iterator[Fault]:
        least = {"context": 2, "hidden": 1, "seeds": 1, "epochs": 1, "patience": 1,
                 "batch_size": 1, "embargo": 0, "seed": 0}  # fmt: skip
        for name, low in least.items():
            value = getattr(self, name)
            if value < low:
                yield f"`--{name.replace('_', '-')}` is {value}", f"at least {low}."
        if not 0 <= self.dropout < 1:
            yield f"`--dropout` is {self.dropout}", "from 0 to below 1."
        if not 0 < self.lr < math.inf:
            yield f"`--lr` is {self.lr}", "above 0."


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values)) or "empty"
