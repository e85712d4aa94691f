"""The runs of `--from-scratch`, on the package's Trainer: text as ever, and speech."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.checkpoints.caches import cache_directory
from compress.checkpoints.durable import write_json
from compress.checkpoints.tensorfiles import read_json
from compress.data.audio import Recording
from compress.data.audio_features import FeatureStore, feature_store
from compress.data.audio_files import Hearing
from compress.errors import RequestError
from compress.evaluation.speech import frame_columns
from compress.lowrank.finishing import LOADING
from compress.lowrank.scratch.decay import set_factor_decay
from compress.lowrank.scratch.factoring import Factored
from compress.lowrank.scratch.factors import low_rank_layers
from compress.lowrank.scratch.losses import mean_ctc_loss
from compress.lowrank.scratch.rows import GroupedPositions, SpeechCollator, SpeechRows, fitting
from compress.lowrank.scratch.settings import ScratchSettings
from compress.lowrank.scratch.watching import UpdateNorms
from compress.reports import formats as fmt
from compress.reports.headers import header_line
from compress.training import telling
from compress.training.arguments import log_every
from compress.training.feeding import Feed, tokens_trained
from compress.training.losses import MeanLoss
from compress.training.preparing import Job
from compress.training.trainer import GradientObserver

_SETS = "speech.json"
_VALIDATED = 512  # recordings of --valid that are scored during a run


@dataclass
class LowRankJob(Job):
    """A run with layers of two factors, on text; SpeechJob hears.

    Attributes:
        factored: what became of the layers.
    """

    factored: Factored | None = None

    @property
    def asked(self) -> ScratchSettings:
        """The settings."""
        assert isinstance(self.settings, ScratchSettings)
        return self.settings

    def take(self, factored: Factored) -> None:
        """Note what became of the layers."""
        self.factored = factored
        self.plan = factored.plan
        self.notes += [*factored.notes, *((LOADING,) if low_rank_layers(self.model) else ())]
        self.extra["lowrank"] = factored.as_receipt(self.asked)

    def lines(self) -> list[str]:
        """What is said before the run."""
        first, *rest = super().lines()
        return [first, *self.factor_lines(), *rest]

    def factor_lines(self) -> list[str]:
        """The layers of two factors: which, how thin, how they start."""
        if self.factored is None or self.factored.plan is None:
            return []
        settings, found = self.asked, self.factored
        ranks = [row["rank"] for row in found.plan.rows] if found.plan else []
        saved = found.dense / found.parameters
        return [
            header_line(
                "factors",
                f"{len(ranks)} layers ({', '.join(settings.include)}), rank {min(ranks)} to "
                f"{max(ranks)}: {settings.rank_ratio:g} of the smaller side, "
                f"{settings.rank_schedule}",
                f"{found.kept / found.chosen:.2f} of their weights; the model has "
                f"{fmt.count_text(found.parameters)} of {fmt.count_text(found.dense)} "
                f"parameters, {saved:.2f}× fewer",
                f"start {settings.factor_init}, decay {settings.factor_decay}",
            )
        ]

    def feed(self, place: Path) -> Feed:
        """Return what was read as the Trainer takes it, the factors' decay set."""
        found = super().feed(place)
        found.ready, found.observers = self.ready, self.observers()
        return found

    def observers(self) -> tuple[GradientObserver, ...]:
        """Watch how far the products move, where they are whole."""
        thin = bool(low_rank_layers(self.model)) and not (
            self.settings.fsdp or self.settings.deepspeed
        )
        return (UpdateNorms(log_every(self.settings)),) if thin else ()

    def ready(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Set the factors' decay."""
        settings = self.asked
        layers = low_rank_layers(model)
        set_factor_decay(optimizer, layers, settings.factor_decay, settings.weight_decay)


@dataclass
class SpeechData:
    """The recordings that a run trains on.

    Attributes:
        recordings: how many are trained on.
        dropped: how many were left out, being too short for their transcript.
        seconds: of audio in all.
        labels: in one pass.
        digest: of the audio and how it was read.
    """

    recordings: int
    dropped: int
    seconds: float
    labels: int
    digest: str

    def receipt(self) -> dict[str, Any]:
        """What the receipt's "data" tells beside the specs."""
        return {
            "recordings": self.recordings,
            "too_short": self.dropped,
            "seconds": self.seconds,
            "tokens": self.labels,
            "digest": self.digest,
        }


@dataclass
class SpeechJob(LowRankJob):
    """A run on recordings.

    Attributes:
        sets: role ("train", "valid") -> its recordings.
        labels: role -> the labels of each.
    """

    sets: dict[str, list[Recording]] = field(default_factory=dict)
    labels: dict[str, list[list[int]]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What is said before the run."""
        settings = self.settings
        plan = header_line(
            "plan",
            f"ctc, {telling.optimizer_words(self)}",
            f"{settings.run_steps():,} steps of {settings.batch_size} recordings, "
            f"seed {settings.seed}",
        )
        return [telling.start_line(self), *self.factor_lines(), plan, *telling.note_lines(self)]

    def take(self, factored: Factored) -> None:
        """Note what became of the layers, and that the loss is CTC's."""
        super().take(factored)
        self.extra["objective"] = "ctc"

    def read(self, place: Path) -> SpeechData:
        """Make the features, or find them, and look whether labels fit."""
        kept, found = {}, {}
        for role, recordings in self.sets.items():
            store = self._store(recordings)
            kept[role] = fitting(
                recordings, store, self.labels[role], self.model, drop=self.asked.drop_short
            )
            found[role] = store
        content = {
            role: {"store": str(s.directory), "digest": s.digest, "rows": kept[role]}
            for role, s in found.items()
        }
        self._check_same(place / _SETS, content)
        write_json(place / _SETS, content)
        labels = sum(len(self.labels["train"][n]) for n in kept["train"])
        train = found["train"]
        dropped = len(train) - len(kept["train"])
        if dropped:
            self.notes.append(f"{dropped} of {len(train)} recordings were too short, and left out")
        return SpeechData(len(kept["train"]), dropped, train.seconds, labels, train.digest)

    def _store(self, recordings: list[Recording]) -> FeatureStore:
        settings, extractor = self.asked, self.start.tokenizer.feature_extractor
        return feature_store(
            recordings,
            extractor,
            Hearing(int(extractor.sampling_rate), settings.resample, settings.max_seconds),
            cache_directory() / "features",
            **frame_columns(self.model.config),
            progress=self.progress,
        )

    def _check_same(self, file: Path, content: dict[str, Any]) -> None:
        """Refuse to go on with other recordings than the interrupted run's."""
        before = read_json(file) if file.is_file() else content
        for role, now in content.items():
            then = before.get(role, {})
            if (then.get("digest"), then.get("rows")) != (now["digest"], now["rows"]):
                raise RequestError(
                    "the recordings have changed since the interrupted run",
                    "start anew with --overwrite",
                )

    def data_line(self, stored: Any) -> str:
        """What is said of the recordings."""
        settings = self.settings
        passes = settings.run_steps() * settings.batch_size / stored.recordings
        return header_line(
            "data",
            f"{', '.join(settings.data)}, {stored.recordings:,} recordings, "
            f"{stored.seconds / 60:.1f} minutes",
            f"read {passes:.2g} times",
            f"validation {', '.join(settings.valid)}" if settings.valid else "",
        )

    def feed(self, place: Path) -> Feed:
        """Return the recordings as the Trainer takes them."""
        content = read_json(place / _SETS)
        rows = {
            role: SpeechRows(FeatureStore(Path(own["store"])), self.labels[role], own["rows"])
            for role, own in content.items()
        }
        settings = self.settings
        total = settings.run_steps() * settings.batch_size
        dataset = GroupedPositions(rows["train"], total, settings.seed, settings.batch_size)
        validate = None
        if "valid" in rows:

            def validate(model: nn.Module, device: torch.device) -> dict[str, MeanLoss]:
                size = 4 * self.arrangement.micro
                return {"valid": mean_ctc_loss(model, rows["valid"], device, size, _VALIDATED)}

        return Feed(
            dataset,
            SpeechCollator(),
            tokens_trained(dataset),
            validate,
            self.observers(),
            self.ready,
        )
