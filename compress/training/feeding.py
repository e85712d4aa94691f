"""What a run trains on, in the Trainer's terms, and the text of the train-* commands as such."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from compress.training.data import Positions, TokenStore
from compress.training.losses import MeanLoss, mean_loss
from compress.training.trainer import GradientObserver

if TYPE_CHECKING:
    from compress.training.preparing import Job

TEXT, VALID = "text", "valid"
_VALIDATED = 256  # rows of --valid that are scored during a run
_WIDER = 4  # without gradients more fits at once

Validate = Callable[[nn.Module, torch.device], dict[str, MeanLoss]]
"""Measures losses on what isn't trained on, by kind ("valid", …)."""


class Stored(Protocol):
    """Training data that was read, whatever it is."""

    def receipt(self) -> dict[str, Any]:
        """What the receipt's "data" tells beside the specs."""


@dataclass
class Feed:
    """What a run trains on.

    Attributes:
        dataset: the whole run in order.
        collate: makes batches of its examples.
        tokens: trained on in the whole run, padding left out.
        validate: None where there is nothing to validate on.
        observers: look at each step's gradients, beside the counter of spikes.
        ready: called with the model and its new optimizer.
    """

    dataset: Positions
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]
    tokens: int
    validate: Validate | None = None
    observers: tuple[GradientObserver, ...] = ()
    ready: Callable[[nn.Module, torch.optim.Optimizer], None] = field(default=lambda m, o: None)


def text_feed(job: Job, place: Path) -> Feed:
    """Return the text that was tokenised to `place`, its rows in random order."""
    from compress.training.preparing import make_collator, make_rows

    settings = job.settings
    rows = make_rows(job, TokenStore(place / TEXT))
    dataset = Positions(rows, settings.run_steps() * settings.batch_size, settings.seed)
    validate = _text_validation(job, TokenStore(place / VALID)) if settings.valid else None
    return Feed(dataset, make_collator(job), tokens_trained(dataset), validate)


def _text_validation(job: Job, store: TokenStore) -> Validate:
    """Measure the loss on held-out text, clean and, with MEAP, masked too."""
    from compress.training.preparing import make_collator, make_rows

    kinds = {"valid": make_rows(job, store, plain=True)}
    if job.settings.ratio > 0:
        kinds["valid_masked"] = make_rows(job, store)

    def measure(model: nn.Module, device: torch.device) -> dict[str, MeanLoss]:
        return {
            kind: mean_loss(
                model,
                rows,
                make_collator(job, masked=kind == "valid_masked"),
                device=device,
                batch_size=_WIDER * job.arrangement.micro,
                limit=_VALIDATED,
            )
            for kind, rows in kinds.items()
        }

    return measure


def tokens_trained(dataset: Positions) -> int:
    """Count the input tokens of a whole run, padding left out."""
    rows: Any = dataset.rows
    if not hasattr(rows, "tokens"):
        return len(dataset) * rows.length
    whole, left = divmod(len(dataset), len(rows))
    total = whole * sum(rows.tokens(row) for row in range(len(rows))) if whole else 0
    places = range(len(dataset) - left, len(dataset))
    return total + sum(rows.tokens(dataset.place(position)[0]) for position in places)
