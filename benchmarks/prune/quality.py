"""Which method and which allocation keep a model's quality: perplexity of every combination.

    python benchmarks/prune/quality.py --small DIR

Writes quality.jsonl and quality.md beside this file.

Models: the shipped tiny Llama; stories260k, where COMPRESS_ASSETS is set; and with --small the
output of benchmarks/real_text/train_llama.py. Wanda and SparseGPT with every allocation at 50, 60,
70 and 80 %; every other method with uniform and alpha at 60 and 80 %; three calibration seeds. One
walk a model and seed carries all branches. ATP's slope is searched per method and sparsity on
held-out calibration text. A line is written per (model, seed) when done; those present are kept,
so the script goes on where it stopped.

stories260k has no text of its own here: it is calibrated and scored on stories that it wrote
itself (temperature 1), of different seeds, so its dense perplexity is that of its own samples.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress import alpha_prune
from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer, walk
from compress.data.packing import prepare_calibration
from compress.data.registry import shipped
from compress.evaluation.perplexity import perplexity
from compress.sparsity.branches import Branch, Branches
from compress.sparsity.planning import targets

HERE = Path(__file__).parent
SAMPLES, SEQLEN, WINDOWS = 32, 256, 24
# Both tails of alpha: the peak is the published one, but needs more eigenvalues than the matrices
# of these models have (see the notes of alpha-prune).
ALLOCATIONS: dict[str, dict[str, Any]] = {
    "uniform": {"allocation": "uniform"},
    "alpha (mid)": {"allocation": "alpha", "metric": "alpha_mid"},
    "alpha (peak)": {"allocation": "alpha", "metric": "alpha_peak"},
    "farms": {"allocation": "farms", "farms_window": 64, "farms_grid": 5},
    "owl": {"allocation": "owl"},
    "dlp": {"allocation": "dlp"},
    "atp": {"allocation": "atp"},
}
METHODS = ("magnitude", "ria", "dsnot", "admm", "alps")


class Subject(NamedTuple):
    """A model with its calibration and scoring text (files)."""

    name: str
    path: Path
    calibration: Path
    scored: Path


def combinations() -> Iterator[tuple[str, str, str, float]]:
    """Yield (method, refit, allocation, sparsity) of every branch."""
    for method in ("wanda", "sparsegpt"):
        for allocation in ALLOCATIONS:
            for sparsity in (0.5, 0.6, 0.7, 0.8):
                yield method, "none", allocation, sparsity
    for allocation in ("uniform", "alpha (mid)"):
        for sparsity in (0.6, 0.8):
            for method in METHODS:
                yield method, "none", allocation, sparsity
            yield "wanda", "exact", allocation, sparsity


def write_texts(path: Path, texts: list[str]) -> Path:
    """Write documents as JSON lines."""
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def own_stories(path: Path, count: int, seed: int) -> list[str]:
    """Sample texts from a model at temperature 1."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    torch.manual_seed(seed)
    start = torch.full((count, 1), tokenizer.bos_token_id)
    found = model.generate(start, do_sample=True, top_k=0, max_new_tokens=SEQLEN, min_length=64)
    return tokenizer.batch_decode(found, skip_special_tokens=True)


def subjects(small: Path | None, scratch: Path) -> Iterator[Subject]:
    """Yield the models that are there."""
    demo = shipped("demo/test.jsonl").parent
    tiny = shipped("tiny-llama")
    yield Subject("tiny-llama", tiny, demo / "calibration.jsonl", demo / "test.jsonl")
    assets = os.environ.get("COMPRESS_ASSETS")
    if assets:
        path = Path(assets) / "models" / "stories260k"
        texts = [own_stories(path, count, seed) for count, seed in ((160, 1), (40, 2))]
        files = [write_texts(scratch / f"stories{i}.jsonl", each) for i, each in enumerate(texts)]
        yield Subject("stories260k", path, *files)
    if assets and small:
        lines = Path(assets, "data", "openwebtext_docs.jsonl").read_text(encoding="utf-8")
        texts = [json.loads(line)["text"] for line in lines.splitlines()]
        cut = len(texts) * 9 // 10
        seen = write_texts(scratch / "seen.jsonl", texts[:cut])
        held = write_texts(scratch / "held.jsonl", texts[cut:])
        yield Subject("small (real text)", small, seen, held)


def scored_windows(subject: Subject, path: Path) -> Any:
    """The perplexity of a checkpoint on the subject's held-out text."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(subject.path)
    lines = subject.scored.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    limit = min(SEQLEN, model.config.max_position_embeddings)
    return perplexity(model, tokenizer, texts, seqlen=limit, limit=WINDOWS, batch_size=8)


def make_branches(subject: Subject, seed: int) -> dict[str, Branch]:
    """Plan every combination; plans of an allocation that ignores the method are made once."""
    source = open_source(subject.path)
    anatomy = read_anatomy(skeleton(source))
    plans: dict[tuple[Any, ...], Any] = {}
    out = {}
    for method, refit, allocation, sparsity in combinations():
        key = (allocation, sparsity, method if allocation == "atp" else "wanda")
        if key not in plans:
            plans[key] = alpha_prune(
                subject.path,
                dry_run=True,
                method=key[2],
                sparsity=sparsity,
                calib=str(subject.calibration),
                samples=SAMPLES,
                seqlen=SEQLEN,
                batch_size=8,
                seed=seed,
                **ALLOCATIONS[allocation],
            ).plan
        name = f"{method}{'' if refit == 'none' else '+' + refit}|{allocation}|{sparsity}"
        out[name] = Branch(
            targets(plans[key], anatomy),
            method,
            {"refit": refit, "stored": source.dtype},
        )
    return out


def run(subject: Subject, seed: int, scratch: Path) -> dict[str, Any]:
    """Prune and score all branches of one model and seed."""
    start = time.perf_counter()
    source = open_source(subject.path)
    branches = make_branches(subject, seed)
    planned = time.perf_counter()
    batches, _ = prepare_calibration(
        str(subject.calibration), source.tokenizer(), samples=SAMPLES, seqlen=SEQLEN, seed=seed,
        batch_size=8, held_out=(),
    )  # fmt: skip
    writers = {name: open_writer(scratch / "parts" / name, source) for name in branches}
    report = walk(
        source, batches, Branches(branches), writers, dtype=torch.float32, streams=list(branches)
    )
    walked = time.perf_counter()
    losses = {}
    for name, writer in writers.items():
        place = scratch / "model"
        writer.join(place)
        (place / "config.json").write_bytes((subject.path / "config.json").read_bytes())
        losses[name] = scored_windows(subject, place).losses.mean().item()
        for file in place.iterdir():
            file.unlink()
    dense = scored_windows(subject, subject.path)
    return {
        "model": subject.name,
        "seed": seed,
        "dense": dense.losses.mean().item(),
        "windows": len(dense.losses),
        "losses": losses,
        "passes": report.passes,
        "seconds": {
            "plan": planned - start,
            "walk": walked - planned,
            "score": time.perf_counter() - walked,
        },
    }


def cell(values: list[float]) -> str:
    """Mean and standard error over seeds of a loss in nats."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.3f} ± {error:.3f}"


def tables(lines: list[dict[str, Any]]) -> str:
    """Markdown: per model, held-out loss by method, allocation and sparsity."""
    out = []
    for model in dict.fromkeys(line["model"] for line in lines):
        mine = [line for line in lines if line["model"] == model]
        losses: dict[str, list[float]] = defaultdict(list)
        for line in mine:
            for name, loss in line["losses"].items():
                losses[name].append(loss)
        seconds = statistics.fmean(sum(line["seconds"].values()) for line in mine)
        out += [
            f"\n## {model}\n",
            f"Dense: {mine[0]['dense']:.3f} nats a token. {len(mine)} seeds, {seconds:.0f} s each, "
            f"{mine[0]['windows']} windows scored.\n",
            "| method | allocation | 50 % | 60 % | 70 % | 80 % |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        rows = dict.fromkeys(tuple(name.split("|")[:2]) for name in losses)
        for method, allocation in rows:
            cells = [losses.get(f"{method}|{allocation}|{s}") for s in (0.5, 0.6, 0.7, 0.8)]
            shown = " | ".join(cell(c) if c else "" for c in cells)
            out.append(f"| {method} | {allocation} | {shown} |")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", type=Path, help="a model of real_text/train_llama.py")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "quality.jsonl")
    options = parser.parse_args()
    done = []
    if options.output.is_file():
        done = [json.loads(line) for line in options.output.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as scratch:
        for subject in subjects(options.small, Path(scratch)):
            for seed in range(options.seeds):
                if any((d["model"], d["seed"]) == (subject.name, seed) for d in done):
                    continue
                with tempfile.TemporaryDirectory() as place:
                    done.append(run(subject, seed, Path(place)))
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    options.output.with_suffix(".md").write_text(tables(done), encoding="utf-8")


if __name__ == "__main__":
    main()
