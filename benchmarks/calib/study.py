"""Which calibration data prunes three small models best: 19 sets, 2 methods, 2 sparsities, 5 seeds.

    python benchmarks/calib/study.py MODEL [--small DIR] [--work DIR] [--cot]

MODEL: tiny-llama (shipped), stories260k (of COMPRESS_ASSETS) or small (--small: the output of
benchmarks/real_text/train_llama.py). Six corpora in three formats each (raw, zero-shot, icl) beside
a reference: text like the model's own training text. Every set has 8 x 256 real tokens. Scored by
the loss on held-out texts. A killed study goes on where it stopped, and one that a budget ended is
completed by the next call; its report goes to benchmarks/calib/MODEL. --cot: in-context examples
with and without their reasoning (icl-cot, icl) of the two corpora that have one, to MODEL/cot.

stories260k has no text of its own here: reference and score are stories that it wrote itself
(temperature 1, of different seeds).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import compress
from compress.data.registry import shipped
from compress.errors import CompressError

HERE = Path(__file__).resolve().parent
CORPORA = ("gsm8k", "svamp", "mawps", "esnli", "commonsense_qa", "winogrande")
FORMATS = ("raw", "zero-shot", "icl")
REASONED, REASONED_FORMATS = ("gsm8k", "esnli"), ("icl", "icl-cot")
KEPT = ("report.html", "cells.csv", "forest.png", "heatmap.png")
# From files of the assets, where the registry's own come from the Hub.
FILES = {
    "gsm8k": ("gsm8k_train_2000.jsonl", "gsm8k_test.jsonl"),
    "mawps": ("mawps_train.jsonl", "mawps_test.jsonl"),
    "esnli": ("esnli_dev_3000.jsonl", "esnli_test_3000.jsonl"),
    "commonsense_qa": ("commonsense_qa_train_2000.jsonl", "commonsense_qa_validation.jsonl"),
}


def write_registry(path: Path, data: Path) -> None:
    """Point the corpora to local copies; files with one split are cut in two."""
    lines = ["schema: 1", "corpora:"]
    for name, (train, test) in FILES.items():
        local = f"{{calibration: {data / train}, evaluation: {data / test}}}"
        lines.append(f"  {name}: {{like: {name}, local: {local}}}")
    for name, file, cut in (("svamp", "svamp.json", 700),
                            ("winogrande", "winogrande_xl_validation.jsonl", 900)):  # fmt: skip
        place = data / file
        lines.append(
            f"  {name}: {{like: {name}, local: {{calibration: {place}, evaluation: {place}}}, "
            f"rows: {{calibration: {cut}}}, skip: {{evaluation: {cut}}}}}"
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_texts(path: Path, texts: list[str]) -> None:
    """Write documents as JSON lines, once: a resumed study must read the same."""
    if not path.exists():
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")


def own_stories(model: Path, count: int, seed: int) -> list[str]:
    """Sample texts from a model at temperature 1."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(seed)
    start = torch.full((count, 1), tokenizer.bos_token_id)
    found = network.generate(start, do_sample=True, top_k=0, max_new_tokens=256, min_length=64)
    return tokenizer.batch_decode(found, skip_special_tokens=True)


def by_domain(work: Path) -> Iterator[str]:
    """The shipped test text, a file for each of its domains."""
    rows = [json.loads(line) for line in shipped("demo/test.jsonl").read_text().splitlines()]
    for domain in sorted({row["domain"] for row in rows}):
        name = f"demo-{domain}.jsonl"
        write_texts(work / name, [row["text"] for row in rows if row["domain"] == domain])
        yield name


def texts_of(name: str, model: Path, data: Path, work: Path) -> tuple[str, list[str]]:
    """The reference set of a model, and what it is scored on."""
    if name == "tiny-llama":
        return "demo", list(by_domain(work))
    if name == "stories260k":
        for file, count, seed in (("own-stories.jsonl", 160, 1), ("own-stories-test.jsonl", 40, 2)):
            if not (work / file).exists():
                write_texts(work / file, own_stories(model, count, seed))
        return "own-stories.jsonl", ["own-stories-test.jsonl"]
    lines = (data / "openwebtext_docs.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    cut = len(texts) * 9 // 10  # the last tenth was held out of training
    write_texts(work / "openwebtext.jsonl", texts[:cut])
    write_texts(work / "openwebtext-held-out.jsonl", texts[cut:])
    shutil.copyfile(data / "wiki.test.raw", work / "wikitext2-test.txt")
    held = ["openwebtext-held-out.jsonl", "wikitext2-test.txt"]
    return "openwebtext.jsonl", [*held, "gsm8k", "esnli", "commonsense_qa"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=("tiny-llama", "stories260k", "small"))
    parser.add_argument("--small", type=Path, help="a model of real_text/train_llama.py")
    parser.add_argument("--work", type=Path, default=Path("calib-study-work"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=float, help="seconds; what is done then is reported")
    parser.add_argument("--no-predictors", action="store_true")
    parser.add_argument("--cot", action="store_true", help="examples with and without reasoning")
    options = parser.parse_args()
    assets = os.environ.get("COMPRESS_ASSETS")
    if not assets:
        raise SystemExit("COMPRESS_ASSETS names no directory of real models and texts")
    data = Path(assets) / "data"
    places = {"tiny-llama": shipped("tiny-llama"), "small": options.small,
              "stories260k": Path(assets) / "models" / "stories260k"}  # fmt: skip
    if places[options.model] is None:
        raise SystemExit("--small DIR is needed")
    corpora, formats = (REASONED, REASONED_FORMATS) if options.cot else (CORPORA, FORMATS)
    parts = (options.model, "cot") if options.cot else (options.model,)
    work = options.work.joinpath(*parts).resolve()
    work.mkdir(parents=True, exist_ok=True)
    model = places[options.model].resolve()
    if not (work / options.model).exists():
        (work / options.model).symlink_to(model)
    write_registry(work / "registry.yaml", data)
    reference, scored = texts_of(options.model, model, data, work)
    os.chdir(work)  # names in the report are relative
    try:
        result = compress.calib_study(
            options.model,
            "study",
            calib=(reference, *(f"{c}@{f}" if f != "raw" else c for c in corpora for f in formats)),
            methods=("wanda", "sparsegpt"),
            sparsity=(0.5, 0.6),
            seeds=options.seeds,
            samples=8,
            seqlen=256,
            batch_size=8,
            ppl=tuple(scored),
            limit=12,
            eval_seqlen=256,
            eval_batch_size=12,
            registry="registry.yaml",
            budget=options.budget,
            predictors=not options.no_predictors,
            reuse=("study",) if (work / "study").exists() else (),
            resume=(work / "study.partial").exists(),
            overwrite=True,
            progress=lambda task, done, total, note="": print(
                task, done, total, note, file=sys.stderr, flush=True
            ) if task in ("cells", "calibration sets") else None,
        )  # fmt: skip
    except CompressError as error:
        raise SystemExit(f"{error.message}\n{error.hint or ''}") from error
    target = HERE.joinpath(*parts)
    target.mkdir(parents=True, exist_ok=True)
    for file in ("cells.csv",) if options.cot else KEPT:
        if (work / "study" / file).exists():
            shutil.copyfile(work / "study" / file, target / file)
    (target / "report.txt").write_text(result.render() + "\n", encoding="utf-8")
    print(result.render())


if __name__ == "__main__":
    main()
