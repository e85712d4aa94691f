"""What a run says before it trains: the model, the plan, the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.reports.headers import header_line, model_line
from compress.training.data import TokenStore

if TYPE_CHECKING:
    from compress.training.preparing import Job


def plan_lines(job: Job) -> list[str]:
    """Say what is trained, and how."""
    settings = job.settings
    objective = settings.objective
    if settings.ratio:
        objective += (
            f", {settings.ratio:g} masked by `{job.start.mask.token}`" if job.start.mask else ""
        )
    plan = header_line(
        "plan",
        f"{objective}, {optimizer_words(job)}",
        f"norms {job.placement.norm}" if settings.norm and job.placement else "",
        f"{len(job.quantised.modules)} layers in 4 bits" if job.quantised else "",
        f"{job.trained.parameters:,} parameters trained" if job.trained else "",
        f"spikes put in: {settings.inject_spikes}" if settings.inject_spikes else "",
        f"{settings.run_steps():,} steps of {settings.batch_size} × {settings.length} tokens, "
        f"seed {settings.seed}",
    )
    return [start_line(job), plan, *note_lines(job)]


def start_line(job: Job) -> str:
    """The model, its size, and whether it starts at random."""
    model = job.model
    blocks = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    blocks = blocks or getattr(
        getattr(model.config, "encoder_config", None), "num_hidden_layers", 0
    )
    count = sum(p.numel() for p in model.parameters())
    state = "random start" if job.start.fresh else "trained weights"
    return model_line(job.start.name, model.config.model_type, blocks, count, state)


def optimizer_words(job: Job) -> str:
    """The optimizer, its rate, and whether gradients are clipped."""
    settings = job.settings
    clip = (
        f"norm clipped to {settings.max_grad_norm:g}" if settings.max_grad_norm else "no clipping"
    )
    return f"{settings.optimizer}, lr {settings.lr:g}, {clip}"


def note_lines(job: Job) -> list[str]:
    """The notes: a run may take days, and what may go wrong is said first, not last."""
    return [header_line("note", note) for note in job.notes]


def text_line(job: Job, store: TokenStore) -> str:
    """The text that was read."""
    settings = job.settings
    epochs = settings.run_steps() * settings.batch_size * settings.length / max(store.tokens, 1)
    documents = f"{store.documents:,} document" + "s" * (store.documents != 1)
    return header_line(
        "data",
        f"{', '.join(settings.data)}, {store.tokens:,} tokens in {documents}",
        f"read {epochs:.2g} times" if not settings.sft else "",
        f"validation {', '.join(settings.valid)}" if settings.valid else "",
    )
