"""The plan of a run: read, taken up from an interrupted run, or made from statistics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.checkpoints.plan import Plan, read_plan
from compress.checkpoints.workspace import Workspace, write_json
from compress.errors import RequestError
from compress.lowrank.applying import Targets
from compress.lowrank.gradients import measure_gradients
from compress.lowrank.measuring import measure_inputs
from compress.lowrank.modules import Unit, units_of
from compress.lowrank.planning import COMMAND, choose_ranks, rows_of, units_of_plan
from compress.lowrank.preparing import Job
from compress.lowrank.spectra import few_tokens, measure_spectra
from compress.lowrank.spreading import spread_by_trials
from compress.lowrank.statistics import gram_dtype
from compress.lowrank.store import BlockFiles, StatisticsStore
from compress.lowrank.timing import Timing, keep_within, measure_timing
from compress.lowrank.trials import Trials

_FILE = "planned.json"


@dataclass(frozen=True)
class Planned:
    """What a run will do.

    Attributes:
        plan: its rows.
        targets: units that become factors, with ranks.
        store: statistics of the inputs, where the method has any.
        gradients: of kfac: Γ of each layer, by block.
    """

    plan: Plan
    targets: Targets
    store: StatisticsStore | None = None
    gradients: BlockFiles | None = None


def read_given(job: Job, plan: str | Path | Plan | None) -> Planned | None:
    """Check the plan given.

    Raises:
        RequestError: it can't be read, isn't for this model, or asks for what can't be.
    """
    if plan is None:
        return None
    matrices = {m.name: m for m in job.chosen.matrices}
    if not isinstance(plan, Plan):
        plan = read_plan(
            Path(plan), command=COMMAND, model_digest=job.source.digest(), modules=matrices
        )
    units, ranks = units_of_plan(plan, matrices)
    if not any(ranks):
        raise RequestError("the plan makes factors of no layer")
    return Planned(plan, Targets.of(units, ranks))


def make_plan(job: Job, given: Planned | None, workspace: Workspace) -> Planned:
    """Measure what the method needs, and spread ranks, unless a plan is given or was made.

    What an interrupted run has measured isn't measured again.
    """
    if given is not None:
        matrices = [m for u in given.targets.units.values() for m in u.matrices]
        needed = job.settings.measures and not (
            job.settings.sequential and not (job.settings.save_stats or job.settings.load_stats)
        )
        store, gradients = _measured(job, matrices, workspace) if needed else (None, None)
        return Planned(given.plan, given.targets, store, gradients)
    made, timing = _kept(job, workspace), None
    if made is None and job.settings.budget_ms is not None:  # first: it may be out of reach
        timing = measure_timing(job, units_of(job.chosen.matrices, job.settings.share))
    store, gradients = _measured(job, job.chosen.matrices, workspace)
    if made is None:
        made = _new(job, store, gradients, timing)
        write_json(workspace.path / _FILE, made.as_dict())
    units, ranks = units_of_plan(made, {m.name: m for m in job.chosen.matrices})
    return Planned(made, Targets.of(units, ranks), store, gradients)


def _new(
    job: Job, store: StatisticsStore | None, gradients: BlockFiles | None, timing: Timing | None
) -> Plan:
    settings = job.settings
    matrices, inputs = _reached(job, store)
    units = units_of(matrices, settings.share, inputs)
    energies: dict[str, Tensor] = {}
    if settings.rule not in ("fixed", "file") or store is not None:
        energies = measure_spectra(
            job.source,
            units,
            store,
            settings,
            gradients=gradients,
            device=job.device,
            progress=job.progress,
        )
    parameters = job.source.parameters_on_disk()
    if settings.tries:
        assert store is not None
        ranks, facts = _by_trials(job, units, energies, store)
    elif timing is not None:
        ranks, facts = _in_time(job, units, energies, timing)
    else:
        ranks, facts = choose_ranks(units, energies, settings, parameters)
    if store is not None:
        job.notes.extend(few_tokens(units, store, settings))
    name, value = settings.size
    options = {
        "method": settings.method,
        "alloc": settings.rule,
        **({} if settings.rule == "file" else {name: value}),
        **({"share": list(settings.share)} if settings.share else {}),
        **facts,
    }
    return Plan(COMMAND, job.source.digest(), rows_of(units, ranks, energies), options)


def _in_time(
    job: Job, units: Sequence[Unit], energies: dict[str, Tensor], timing: Timing
) -> tuple[list[int], dict[str, Any]]:
    """Ranks of the largest share whose forward is foretold to keep the budget."""
    settings, parameters = job.settings, job.source.parameters_on_disk()

    def ranks_at(keep: float) -> list[int]:
        asked = replace(settings, budget_ms=None, keep=keep)
        return choose_ranks(units, energies, asked, parameters)[0]

    keep, ranks = keep_within(timing, units, float(settings.budget_ms or 0) / 1e3, ranks_at)
    return ranks, {
        "budget_tokens": settings.budget_tokens,
        "keep": round(keep, 6),
        "dense_ms": _ms(timing.whole),
        "foretold_ms": _ms(timing.foretell(units, ranks)),
    }


def _ms(seconds: float) -> float:
    return float(f"{seconds * 1e3:.4g}")


def _reached(job: Job, store: StatisticsStore | None) -> tuple[list[Any], dict[str, str] | None]:
    """The layers that tokens reached, and which read one input."""
    if store is None:
        return list(job.chosen.matrices), None
    inputs: dict[str, str] = {}
    for block in dict.fromkeys(m.block for m in job.chosen.matrices):
        inputs |= store.alias(block)
    left = [m.name for m in job.chosen.matrices if m.name not in inputs]
    if left:
        job.notes.append(
            f"not factored: {left[0]}"
            + (f" and {len(left) - 1} more" if len(left) > 1 else "")
            + ": no calibration token reached it"
        )
    matrices = [m for m in job.chosen.matrices if m.name in inputs]
    if not matrices:
        raise RequestError(
            "no calibration token reached a chosen layer",
            "the statistics or batches given are of other layers",
        )
    return matrices, inputs


def _measured(
    job: Job, matrices: Sequence[Any], workspace: Workspace
) -> tuple[StatisticsStore | None, BlockFiles | None]:
    """The statistics of the inputs, and for kfac the output gradients."""
    settings = job.settings
    if not settings.measures:
        return None, None
    if settings.load_stats is not None:
        store = StatisticsStore(Path(settings.load_stats), reads_only=True)
        head = store.check(job.source.digest())
        job.notes.append(f"statistics taken from `{settings.load_stats}`: {head.get('said')}")
    else:
        store = StatisticsStore(workspace.path / "statistics")
        if not store.whole:
            _measure(job, matrices, store)
        if settings.save_stats is not None:
            store.copy_to(Path(settings.save_stats))
    return store, _gradients(job, matrices, workspace)


def _gradients(job: Job, matrices: Sequence[Any], workspace: Workspace) -> BlockFiles | None:
    """The output gradients that kfac needs; those of an interrupted run are kept."""
    if job.settings.method != "kfac":
        return None
    files = BlockFiles(workspace.path / "gradients")
    if any(block not in files for block in {m.block for m in matrices}):
        measure_gradients(
            job.source,
            matrices,
            job.batches[: job.settings.gradient_samples],
            files,
            seed=job.settings.seed,
            device=job.device,
            dtype=job.running,
            progress=job.progress,
        )
    return files


def _by_trials(
    job: Job, units: Sequence[Unit], energies: dict[str, Tensor], store: StatisticsStore
) -> tuple[list[int], dict[str, Any]]:
    """Ranks by the rules that try whole models."""
    trials = Trials(
        job.source,
        units,
        store,
        job.settings,
        job.batches[: job.settings.trial_samples],
        device=job.device,
        dtype=job.running,
        progress=job.progress,
    )
    parameters = job.source.parameters_on_disk()
    return spread_by_trials(trials, units, energies, job.settings, parameters)


def _measure(job: Job, matrices: Sequence[Any], store: StatisticsStore) -> None:
    assert job.data is not None
    report = measure_inputs(
        job.source,
        job.batches,
        [m.name for m in matrices],
        store,
        gram=gram_dtype(job.data.tokens),
        progress=job.progress,
        **job.options,
    )
    job.count(report.passes, report.peak_bytes)
    settings = job.settings
    said = f"{settings.calib}, {job.data.windows} × {job.data.seqlen}, seed {settings.seed}"
    store.head(model=job.source.digest(), data=job.data.digest, said=said)


def _kept(job: Job, workspace: Workspace) -> Plan | None:
    """The plan that an interrupted run had made here."""
    try:
        found = json.loads((workspace.path / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Plan(COMMAND, job.source.digest(), found["rows"], found["options"])


__all__ = ["Planned", "Unit", "make_plan", "read_given"]
