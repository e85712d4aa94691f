"""`compress demo`: the main job on what the package ships, with the control that keeps it honest.

The tiny Llama is pruned at two sparsities under four divisions of the same number of zeros: all
blocks alike (uniform); by the spectra with the tail from the median on (alpha-mid) and from the
histogram's peak on (alpha-peak, the default for large models); and the control (first-only): the
first block gets alpha-mid's share, the others are alike. Where the control does as well as
alpha-mid, the gain is that of sparing the first block, and says nothing about how the spectra rank
the others. alpha-peak is shown since it fails here: a peak among 100 bins can't be told from 96
eigenvalues.

With `everything`, two of the four layers of the tiny mixture of experts are condensed too, as
published and refitted.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compress.checkpoints.plan import Plan
from compress.checkpoints.workspace import Workspace
from compress.data.registry import shipped
from compress.evaluation.measures import Measures
from compress.experts.command import cd_moe_condense
from compress.numerics.allocation import to_counts
from compress.progress import Progress, silent
from compress.reports import formats as fmt
from compress.reports.compare import Report, report
from compress.reports.notebook import Displayable
from compress.sparsity.command import PruneResult, alpha_prune

MODEL = "tiny-llama"
MIXTURE = "tiny-moe"
CONDENSED: dict[str, dict[str, Any]] = {"moe-published": {"paper": True}, "moe-refitted": {}}
LAYERS = 2
TEXT = "demo"
TASKS = ("tiny_arithmetic", "tiny_commonsense", "tiny_entailment", "tiny_story")
SPARSITIES = (0.7, 0.8)
ARMS = ("uniform", "alpha-mid", "alpha-peak", "first-only")
SPECTRUM = "model.layers.3.self_attn.q_proj"
SAMPLES, SEQLEN, LIMIT = 64, 128, 60

Say = Callable[[str], None]


@dataclass(frozen=True)
class Demo(Displayable):
    """What the demo found.

    Attributes:
        reports: the arms side by side, a table per sparsity, uniform the reference.
        spectrum: one matrix's spectrum as a chart.
        verdicts: a sentence per sparsity on what the figures show.
        output: where the checkpoints lie, if they were to be kept.
    """

    reports: tuple[Report, ...]
    spectrum: str
    verdicts: tuple[str, ...]
    output: Path | None

    def as_dict(self) -> dict[str, Any]:
        """The runs, their comparison and the verdicts as JSON types."""
        tables = [table.as_dict() for table in self.reports]
        runs = [run for table in tables for run in table["runs"]]
        comparisons = [row for table in tables for row in table.get("comparison", [])]
        return {
            "schema": 1,
            "command": "demo",
            "runs": runs,
            "comparison": comparisons,
            "verdicts": list(self.verdicts),
        }

    def render(self) -> str:
        """Everything for people."""
        width = fmt.screen_width()
        parts = [self.spectrum]
        for table, verdict in zip(self.reports, self.verdicts):
            parts += [table.render(), fmt.fit_encoding(fmt.wrap(verdict, width))]
        if self.output:
            parts.append(f"kept in {self.output}")
        return "\n\n".join(parts)


def demo(
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    everything: bool = False,
    seed: int = 0,
    progress: Progress = silent,
    say: Say = lambda text: None,
) -> Demo:
    """Prune the shipped tiny Llama at two sparsities and compare.

    Args:
        output: a directory to keep the checkpoints and receipts in; None keeps nothing.
        overwrite: replace a non-empty output, at the end.
        everything: condense the tiny mixture of experts too.
        seed: of the calibration windows.
        progress, say: told where the job stands.

    Raises:
        RequestError: the output can't be used.
    """
    with contextlib.ExitStack() as stack:
        if output is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compress-demo-")))
        else:
            space = stack.enter_context(Workspace.open(output, overwrite=overwrite))
            place = space.result
        runs = _runs(place, seed, progress, say)
        tables = [report([place / _name(s, arm) for arm in ARMS]) for s in SPARSITIES]
        verdicts = [_verdict(runs, sparsity) for sparsity in SPARSITIES]
        if everything:
            verdicts.append(_condense(place, seed, progress, say))
            tables.append(report([place / name for name in CONDENSED]))
        found = Demo(
            tuple(tables),
            _spectrum(progress),
            tuple(verdicts),
            Path(output) if output is not None else None,
        )
        if output is not None:
            space.commit()
    return found


def _runs(place: Path, seed: int, progress: Progress, say: Say) -> dict[str, PruneResult]:
    """Every arm at every sparsity; the dense model is scored once."""
    runs: dict[str, PruneResult] = {}
    before = None
    total = len(SPARSITIES) * len(ARMS)
    for sparsity in SPARSITIES:
        plan = None
        for arm in ARMS:
            name = _name(sparsity, arm)
            if arm == "first-only":
                plan = _first_only(runs[_name(sparsity, "alpha-mid")].plan, sparsity)
            done = alpha_prune(
                shipped(MODEL),
                place / name,
                sparsity=sparsity,
                allocation="alpha" if arm.startswith("alpha") else "uniform",
                metric=arm.replace("-", "_") if arm.startswith("alpha") else "alpha_peak",
                plan=plan,
                calib="demo",
                samples=SAMPLES,
                seqlen=SEQLEN,
                batch_size=8,
                ppl=(TEXT,),
                tasks=TASKS,
                limit=LIMIT,
                eval_seqlen=SEQLEN,
                seed=seed,
                before=before,
                progress=progress,
                say=say if not runs else lambda text: None,
            )
            before = done.before
            runs[name] = done
            progress("demo", len(runs), total, name)
    return runs


def _condense(place: Path, seed: int, progress: Progress, say: Say) -> str:
    """Condense layers of the mixture of experts both ways; return what the figures show."""
    after: dict[str, Measures] = {}
    for name, options in CONDENSED.items():
        done = cd_moe_condense(
            shipped(MIXTURE),
            place / name,
            layers=LAYERS,
            calib="demo",
            samples=SAMPLES,
            seqlen=SEQLEN,
            batch_size=8,
            ppl=(TEXT,),
            tasks=TASKS,
            limit=LIMIT,
            eval_seqlen=SEQLEN,
            seed=seed,
            progress=progress,
            say=say if not after else lambda text: None,
            **options,
        )
        after[name] = done.after
    published, refitted = after.values()
    figures = ", ".join(f"{n} {a.perplexity[TEXT].value:.2f}" for n, a in after.items())
    return (
        f"{LAYERS} expert layers condensed, perplexity: {figures}. Refitted is "
        f"{_versus(published, refitted)} the published procedure."
    )


def _name(sparsity: float, arm: str) -> str:
    return f"s{round(100 * sparsity)}-{arm}"


def _first_only(alpha: Plan, sparsity: float) -> Plan:
    """The control: alpha's share for the first block, one share for all others, equal zeros."""
    first = alpha.rows[0]["block"]
    sizes = torch.tensor([row["size"] for row in alpha.rows])
    inside = torch.tensor([row["block"] == first for row in alpha.rows])
    zeros = torch.tensor([row["zeros"] for row in alpha.rows])
    total = round(sparsity * int(sizes.sum()))
    share_first = float(zeros[inside].sum() / sizes[inside].sum())
    share_rest = (total - share_first * float(sizes[inside].sum())) / float(sizes[~inside].sum())
    shares = torch.where(inside, share_first, share_rest).double()
    rows = []
    for row, count in zip(alpha.rows, to_counts(shares, sizes, sparsity).tolist()):
        kept = {k: row[k] for k in ("module", "kind", "block", "size")}
        rows.append({**kept, "zeros": count, "sparsity": round(count / row["size"], 6)})
    return Plan(alpha.command, alpha.model_digest, rows, {"allocation": "first-only"})


def _spectrum(progress: Progress) -> str:
    from compress.spectra.inspect import inspect

    return inspect(shipped(MODEL), module=SPECTRUM, progress=progress).render()


def _verdict(runs: dict[str, PruneResult], sparsity: float) -> str:
    """Say what the figures at one sparsity show about alpha, and no more."""
    after = {arm: runs[_name(sparsity, arm)].after for arm in ARMS}
    figures = ", ".join(f"{arm} {after[arm].perplexity[TEXT].value:.2f}" for arm in ARMS)
    uniform, control = (_versus(after[a], after["alpha-mid"]) for a in ("uniform", "first-only"))
    peak = _versus(after["uniform"], after["alpha-peak"])
    return (
        f"at {sparsity:.0%} zeros, perplexity: {figures}. alpha-mid is {uniform} uniform, and "
        f"{control} its share for the first block alone; alpha-peak is {peak} uniform."
    )


def _versus(reference: Measures, other: Measures) -> str:
    """How the other did, told by the paired 95 % interval over the windows."""
    from compress.evaluation.compare import compare_windows

    change = compare_windows(reference.perplexity[TEXT], other.perplexity[TEXT])
    if change.ci95 is None or change.ci95[0] <= 0 <= change.ci95[1]:
        return "not distinguishable from"
    return "better than" if change.difference < 0 else "worse than"
