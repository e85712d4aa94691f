"""`train-side` from files to a receipt: read, embed, train, score, save."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.checkpoints.census import census
from compress.checkpoints.placement import resolve_device
from compress.checkpoints.source import Source, open_source
from compress.checkpoints.workspace import Workspace, check_output
from compress.drought import baselines, scoring
from compress.drought.configuration import SideConfig
from compress.drought.embedding import AUTO, SMALL, TFIDF, HashedText, choose_encoder, embed
from compress.drought.features import Inputs, Statistics, fit_statistics, make_inputs
from compress.drought.fitting import Fit, estimate, fit, new_model
from compress.drought.metrics import as_plain
from compress.drought.preparing import Data, prepare
from compress.drought.result import SideResult, describe_data, notes_of
from compress.drought.settings import SideSettings
from compress.drought.splitting import TEST, TRAIN, VAL
from compress.drought.writing import write_result
from compress.errors import RunError, check_options
from compress.progress import Progress, silent
from compress.reports.clock import Clock
from compress.reports.receipt import Receipt, write_items

COMMAND = "train-side"
NO_ENCODER = f"no encoder at hand ({SMALL} is the default): texts are hashed n-grams"


@dataclass
class Job:
    """What the steps share.

    Attributes:
        source: the text encoder; None where texts are hashed or there are none.
        hashed: the fitted n-grams, likewise.
        vectors: of the texts [N, K].
    """

    settings: SideSettings
    data: Data
    device: str
    clock: Clock
    progress: Progress
    source: Source | None = None
    hashed: HashedText | None = None
    vectors: np.ndarray | None = None


def train_side(
    output: str | Path | None = None,
    *,
    series: str | Path,
    dry_run: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    say: Any = lambda text: None,
    **options: Any,
) -> SideResult:
    """Train a drought estimator on a weekly series and, if given, texts and reports of impact.

    Args:
        output: the directory to make; None trains and scores without keeping the model.
        series: a US Drought Monitor file, or one with region, date and severity.
        dry_run: stop after reading: what was recognised, the split, the texts' coverage.
        resume: go on from an interrupted run's journal in `OUT.partial`.
        overwrite: replace a non-empty output, at the end.
        progress, say: told where the job stands; say gets lines for the reader.
        options: fields of SideSettings, such as texts, impact, horizons, encoder, seeds.

    Returns:
        The scores, the receipt and where the model lies.

    Raises:
        RequestError: something about the request or a file is wrong; nothing was written.
        RunError: the training failed part-way; what was finished is kept for `resume`.

    Source: SIDE, arXiv:2412.12575; see `modeling` for what is theirs and what is ours.
    """
    check_options("train_side", options, (f.name for f in fields(SideSettings)))
    settings = SideSettings(series=str(series), **options).resolved()
    clock = Clock()
    with contextlib.ExitStack() as stack:
        if output is not None and not dry_run:
            check_output(output, overwrite=overwrite or resume)
        device = resolve_device(settings.device)
        with clock("load"):
            source = None if settings.texts is None else choose_encoder(settings.encoder)
            data = prepare(settings)
            if settings.texts is not None and source is None and settings.encoder == AUTO:
                data = replace(data, notes=(*data.notes, NO_ENCODER))
        for line in data.warnings:
            say(line)
        say(describe_data(data))
        if dry_run:
            return SideResult(plan=data.plan())
        place = Path(output) if output is not None else _scratch(stack)
        workspace = stack.enter_context(
            Workspace.open(
                place,
                overwrite=overwrite,
                resume=resume,
                fingerprint=_fingerprint(settings, data, source),
                source=None if source is None else source.directory,
            )
        )
        if workspace.committed:
            workspace.discard()
            report = json.loads((place / "report.json").read_text(encoding="utf-8"))
            return SideResult(report=report, receipt=Receipt.read(place), output=place)
        job = Job(settings, data, device, clock, progress, source)
        report, receipt = _run(job, workspace)
        return SideResult(
            report=report, receipt=receipt, output=place if output is not None else None
        )


def _run(job: Job, workspace: Workspace) -> tuple[dict[str, Any], Receipt]:
    settings, table = job.settings, job.data.table
    with job.clock("embed"):
        vectors = embed_texts(job)
        job.vectors = vectors
    own = np.array([name not in settings.transfer_to for name in table.regions])
    statistics = fit_statistics(table, vectors, settings.impact_loss, own)
    trained = tuple(n for n, on in zip(table.regions, own) if on)
    inputs = make_inputs(table, vectors, statistics, settings.impact_loss, trained)
    config = make_config(job, vectors.shape[1], trained)
    with job.clock("train"):
        fits = [
            _train(
                job, config, statistics, inputs.to(job.device), settings.seed + number, workspace
            )
            for number in range(settings.seeds)
        ]
    with job.clock("evaluate"):
        estimates = _estimates(job, fits, inputs.to(job.device))
        report, widths = _report(job, estimates, statistics, inputs, fits)
    with job.clock("save"):
        write_result(
            workspace.result, fits[estimates.kept].model, job, statistics, widths, report,
            estimates, inputs,
        )  # fmt: skip
    receipt = _receipt(job, report, fits, workspace)
    receipt.write(workspace.result)
    items = scoring.outcomes(table, estimates, settings.impact_loss)
    write_items(workspace.result, {k: v for k, v in items.items() if v})
    workspace.commit()
    return report, receipt


def embed_texts(job: Job) -> np.ndarray:
    """Vectors of the texts, float32 [N, K]; n-grams are fitted on those of training weeks."""
    texts = [item.text for item in job.data.texts.items]
    if not texts:
        return np.zeros((0, 1), np.float32)
    if job.source is not None:
        return embed(job.source, texts, job.device, job.progress)
    table = job.data.table
    used = np.unique(table.link_text[table.part[table.link_row] == TRAIN])
    job.hashed = HashedText.fit([texts[i] for i in used], job.settings.seed)
    return job.hashed(texts)


def make_config(job: Job, width: int, regions: tuple[str, ...]) -> SideConfig:
    """The model's shape."""
    settings, table = job.settings, job.data.table
    return SideConfig(
        text_width=width,
        physical=table.physical_names,
        regions=regions,
        horizons=table.horizons,
        categories=table.categories,
        context=settings.context,
        hidden_size=settings.hidden,
        dropout=settings.dropout,
        use_text=bool(job.data.texts.items) and not settings.no_text,
        use_physical=not settings.no_physical,
        use_cross=not settings.no_cross,
        tasks=settings.tasks,
        impact_loss=settings.impact_loss,
        target=settings.target,
        encoder=TFIDF if job.source is None else "encoder",
        simulated=any("SIMULATED" in line for line in job.data.warnings),
        architectures=["SideModel"],
    )


def _train(
    job: Job,
    config: SideConfig,
    statistics: Statistics,
    inputs: Inputs,
    seed: int,
    workspace: Workspace,
) -> Fit:
    settings, table = job.settings, job.data.table
    model = new_model(config, statistics.prior, settings.impact_loss, seed)
    torch.nn.Module.to(model, job.device)
    name = "train" if settings.seeds == 1 else f"train, seed {seed}"
    return fit(
        model, inputs, table.anchors(TRAIN), table.anchors(VAL), settings.fit_options(), seed,
        journal=workspace.path / f"seed-{seed}.pt", progress=job.progress, task=name,
    )  # fmt: skip


def _estimates(job: Job, fits: list[Fit], inputs: Inputs) -> scoring.Estimates:
    table = job.data.table
    rows = np.concatenate([table.anchors(VAL), table.anchors(TEST)])
    found = [
        estimate(f.model, inputs, rows, len(table.days), job.settings.impact_loss) for f in fits
    ]
    severity, impact = (np.stack([pair[i] for pair in found]) for i in (0, 1))
    if not np.isfinite(severity[:, rows]).all():
        raise RunError("estimates aren't finite", "a smaller --lr, or another --seed")
    # by validation: the test part chooses nothing
    return scoring.Estimates(severity, impact, int(np.argmin([f.val_loss for f in fits])))


def _report(
    job: Job,
    estimates: scoring.Estimates,
    statistics: Statistics,
    inputs: Inputs,
    fits: list[Fit],
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Everything that was measured, and the half widths of the intervals."""
    settings, table = job.settings, job.data.table
    text = mean_vectors(job)
    full = settings.baselines == "all"
    rivals = (
        baselines.severity_baselines(table, text, settings.seed)
        if full
        else {"persistence": baselines.persistence(table),
              "climatology": baselines.climatology(table)}
    )  # fmt: skip
    scale = inputs.scale.numpy()
    kept = estimates.severity[estimates.kept]
    widths = scoring.conformal(table, kept, scale)
    own, others = scoring.severity_report(table, estimates, rivals)
    report: dict[str, Any] = {
        "schema": 1,
        "command": COMMAND,
        **({"warnings": list(job.data.warnings)} if job.data.warnings else {}),
        "target": settings.target,
        "skill": as_plain(own),
        "baselines": {name: as_plain(rows) for name, rows in others.items()},
        **scoring.groups(table, estimates),
        "reliability": scoring.coverage(table, kept, scale, widths),
        "seeds": [
            {"seed": settings.seed + i, "best_epoch": f.best_epoch, "epochs": len(f.curve) - 1,
             "val_loss": f.val_loss, "impact_weight": f.impact_weight, "kept": i == estimates.kept}
            for i, f in enumerate(fits)
        ],
        "data": job.data.as_dict(),
    }  # fmt: skip
    classes = scoring.class_report(table, estimates, rivals, statistics)
    impacts = scoring.impact_report(table, estimates, text, settings.impact_loss, full)
    report |= {k: v for k, v in (("classes", classes), ("impacts", impacts)) if v}
    return report, widths


def mean_vectors(job: Job) -> np.ndarray | None:
    """The mean text vector of each row on the main directions of training texts, [W, TEXT_WIDTH].

    Zeros in a week without texts; None where there are no texts at all.
    """
    table, vectors = job.data.table, job.vectors
    if vectors is None or len(vectors) == 0:
        return None
    train = vectors[np.unique(table.link_text[table.part[table.link_row] == TRAIN])]
    centre = train.mean(axis=0) if len(train) else np.zeros(vectors.shape[1])
    directions = np.linalg.svd(train - centre, full_matrices=False)[2][: baselines.TEXT_WIDTH]
    reduced = (vectors - centre) @ directions.T
    sums = np.zeros((len(table.days), reduced.shape[1]))
    np.add.at(sums, table.link_row, reduced[table.link_text])
    return sums / np.maximum(table.text_counts, 1)[:, None]


def _receipt(job: Job, report: Mapping[str, Any], fits: list[Fit], workspace: Workspace) -> Receipt:
    settings = job.settings
    steps = -(-len(job.data.table.anchors(TRAIN)) // settings.batch_size)
    kept = next(f for f, s in zip(fits, report["seeds"]) if s["kept"])
    model = None
    if job.source is not None:
        model = {
            "source": job.source.name,
            "architecture": job.source.model_class().__name__,
            "digest": job.source.digest(),
        }
    skill = {
        h: {k: row[k] for k in ("mae", "persistence_mae", "skill", "ci95", "n", "verdict")}
        for h, row in report["skill"].items()
    }
    return Receipt.build(
        COMMAND,
        seed=settings.seed,
        device=job.device,
        settings=settings.as_dict(),
        model=model,
        after=census(open_source(workspace.result))._asdict(),
        skill=skill,
        training={
            "steps": steps * sum(len(f.curve) - 1 for f in fits),
            "loss": {"value": kept.curve[-1][0]},
        },
        data=report["data"],
        warnings=list(job.data.warnings),
        cost={"seconds": job.clock.seconds},
        notes=[*job.data.warnings, *job.data.notes, *notes_of(report)],
    )


def _fingerprint(settings: SideSettings, data: Data, source: Source | None) -> dict[str, Any]:
    """What a resumed run must share with the interrupted one."""
    return {
        "command": COMMAND,
        "series": data.series.digest,
        "texts": data.texts.digest,
        "impact": data.impacts.digest if data.impacts else None,
        "encoder": source.digest() if source else None,
        "options": settings.as_dict(),
    }


def _scratch(stack: contextlib.ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compress-"))) / "out"
