"""What is done with the grid's checkpoints: fine-tuning, preference tuning, pruning.

- fine-tune: compress.train_spam with --sft on GSM8K, the same samples and rate for every arm.
- prefer: direct preference optimisation (DPO, arXiv:2305.18290) by a rule. Two continuations of a
  prompt are sampled; the one with fewer of the banned tokens (the 20 most frequent of the training
  text) is preferred, ties are left out.
- retrieve: compress.evaluate on needle, multidoc and longreason, in prompts of 256 tokens.
- prune: compress.alpha_prune with even and with spectral shares, and each layer alone cut.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import corpus
import torch
from torch import Tensor

HELD_OUT_WINDOWS = 600
TUNE_STEPS, TUNE_LR = 100, 5e-4
PROMPT, ANSWER, BANNED = 16, 24, 20
PAIRS, DPO_STEPS, DPO_BATCH, DPO_LR, DPO_BETA = 256, 48, 16, 2e-5, 0.1
LAYER_CUT = 0.7
RETRIEVAL, ITEMS = ("needle", "multidoc", "longreason"), 20


def fine_tune(base: Path, output: Path, seed: int, text: Path) -> dict[str, Any]:
    """Loss on answers of GSM8K's test set, after 100 steps of 8 samples."""
    import compress

    result = compress.train_spam(
        str(base), output, data=[str(text / "gsm8k.jsonl")], sft="question:answer",
        valid=[str(text / "gsm8k.held.jsonl")], steps=TUNE_STEPS, batch_size=8, seqlen=256,
        lr=TUNE_LR, optimizer="adamw", max_grad_norm=1.0, spikes=False, seed=seed, device="cpu",
        eval_every=TUNE_STEPS, save_every=TUNE_STEPS, overwrite=True,
    )  # fmt: skip
    training = result.as_dict()["training"]
    found = training["valid"]["valid"]
    return {
        "answer_loss": round(found["value"], 5),
        "train_loss": round(training["loss"]["value"], 5),
    }


def prefer(base: Path, output: Path, seed: int, text: Path) -> dict[str, Any]:
    """Share of banned tokens among sampled ones, and held-out loss, before and after DPO."""
    model, tokenizer = _load(base)
    reference, _ = _load(base)
    banned = _banned(tokenizer, text)
    draw = torch.Generator().manual_seed(seed)
    prompts = _prompts(tokenizer, text / "openwebtext.jsonl", PAIRS, draw)
    held = _prompts(tokenizer, text / "openwebtext.held.jsonl", 128, draw)
    before = {
        "banned": _share(model, held, banned, seed),
        "held_out": _loss(model, tokenizer, text),
    }
    pairs = _pairs(model, prompts, banned, seed)
    _optimise(model, reference, pairs, draw)
    after = {"banned": _share(model, held, banned, seed), "held_out": _loss(model, tokenizer, text)}
    return {"before": before, "after": after, "pairs": len(pairs[0])}


def retrieve(base: Path, output: Path, seed: int, text: Path) -> dict[str, Any]:
    """Accuracy, chance and loss on the answers of long-context tasks; the items of every arm."""
    import compress

    found = compress.evaluate(
        [str(base)], tasks=RETRIEVAL, context_lengths=[2 * corpus.LENGTH], per_cell=ITEMS,
        documents=[3, 5], hops=[1, 2], device="cpu",
    )  # fmt: skip
    tasks = found.as_dict()["models"][0]["tasks"]
    kept = ("acc", "chance", "answer_loss", "exact_match")
    return {"tasks": {name: {key: tasks[name][key] for key in kept} for name in RETRIEVAL}}


def prune(base: Path, output: Path, seed: int, text: Path) -> dict[str, Any]:
    """Held-out loss after pruning by even and spectral shares; what each layer alone can lose."""
    import compress

    held = str(text / "openwebtext.held.jsonl")
    found: dict[str, Any] = {}
    for sparsity in (0.5, 0.7):
        for allocation in ("uniform", "alpha"):
            result = compress.alpha_prune(
                str(base), output, sparsity=sparsity, allocation=allocation, seed=seed,
                calib=str(text / "openwebtext.jsonl"), samples=32, seqlen=corpus.LENGTH,
                ppl=[held], eval_seqlen=corpus.LENGTH, limit=HELD_OUT_WINDOWS, device="cpu",
                overwrite=True,
            )  # fmt: skip
            receipt = result.receipt.as_dict()
            for when in ("before", "after"):
                value = math.log(receipt[when]["perplexity"][held]["value"])
                name = "dense" if when == "before" else f"{allocation} {sparsity:.0%}"
                found[name] = round(value, 5)
    model, tokenizer = _load(base)
    return {"loss": found, "layer_damage": _layer_damage(model, tokenizer, text)}


def _load(place: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import compress  # noqa: F401  (opens edited checkpoints)

    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(place)


def _texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def _loss(model: Any, tokenizer: Any, text: Path, windows: int = 200) -> float:
    from compress.evaluation.perplexity import perplexity

    documents = _texts(text / "openwebtext.held.jsonl")
    found = perplexity(model, tokenizer, documents, seqlen=corpus.LENGTH, limit=windows)
    return round(math.log(found.value), 5)


# Preferences


def _banned(tokenizer: Any, text: Path) -> Tensor:
    """The most frequent tokens of the training text, special ones left out: int64 [BANNED]."""
    counts: Counter[int] = Counter()
    for document in _texts(text / "openwebtext.jsonl")[:100]:
        counts.update(tokenizer(document)["input_ids"])
    for special in tokenizer.all_special_ids:
        counts.pop(special, None)
    return torch.tensor([token for token, _ in counts.most_common(BANNED)])


def _prompts(tokenizer: Any, path: Path, count: int, draw: torch.Generator) -> Tensor:
    """Random pieces of a text: int64 [count, PROMPT]."""
    ids = torch.tensor(tokenizer("\n\n".join(_texts(path)))["input_ids"])
    places = torch.randint(0, len(ids) - PROMPT, (count,), generator=draw)
    return torch.stack([ids[place : place + PROMPT] for place in places])


@torch.no_grad()
def _sample(model: Any, prompts: Tensor, seed: int) -> Tensor:
    """A continuation of each prompt at temperature 1: int64 [prompts, PROMPT + ANSWER]."""
    draw = torch.Generator().manual_seed(seed)
    rows, past = prompts, None
    for _ in range(ANSWER):
        fed = rows if past is None else rows[:, -1:]
        out = model(input_ids=fed, past_key_values=past, use_cache=True)
        past = out.past_key_values
        chances = out.logits[:, -1].softmax(-1)
        rows = torch.cat([rows, torch.multinomial(chances, 1, generator=draw)], 1)
    return rows


def _count(rows: Tensor, banned: Tensor) -> Tensor:
    return torch.isin(rows[:, PROMPT:], banned).sum(1)


def _share(model: Any, prompts: Tensor, banned: Tensor, seed: int) -> float:
    rows = _sample(model, prompts, seed + 1000)
    return round(float(_count(rows, banned).sum()) / (len(rows) * ANSWER), 5)


def _pairs(model: Any, prompts: Tensor, banned: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Preferred and other continuations."""
    one, two = _sample(model, prompts, 2 * seed), _sample(model, prompts, 2 * seed + 1)
    fewer = _count(one, banned) - _count(two, banned)
    better = torch.where((fewer < 0)[:, None], one, two)
    worse = torch.where((fewer < 0)[:, None], two, one)
    return better[fewer != 0], worse[fewer != 0]


def _log_chance(model: Any, rows: Tensor) -> Tensor:
    logits = model(input_ids=rows).logits[:, PROMPT - 1 : -1].log_softmax(-1)
    return logits.gather(2, rows[:, PROMPT:, None]).sum((1, 2))


def _optimise(model: Any, reference: Any, pairs: tuple[Tensor, Tensor], draw: Any) -> None:
    """Minimise -log sigmoid(beta (log-ratio of the preferred - log-ratio of the other))."""
    optimizer = torch.optim.AdamW(model.parameters(), DPO_LR, weight_decay=0.0)
    for _ in range(DPO_STEPS):
        some = torch.randint(0, len(pairs[0]), (DPO_BATCH,), generator=draw)
        rows = torch.cat([pairs[0][some], pairs[1][some]])
        with torch.no_grad():
            usual = _log_chance(reference, rows)
        gained = _log_chance(model, rows) - usual
        margin = gained[:DPO_BATCH] - gained[DPO_BATCH:]
        loss = -torch.nn.functional.logsigmoid(DPO_BETA * margin).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


# Pruning


@torch.no_grad()
def _layer_damage(model: Any, tokenizer: Any, text: Path) -> list[float]:
    """Rise of the loss when one layer alone loses 70 % of its weights by size, in each row."""
    whole = _loss(model, tokenizer, text, 100)
    rises = []
    for layer in model.model.layers:
        linears = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
        kept = [m.weight.clone() for m in linears]
        for m in linears:
            size = m.weight.abs()
            limit = size.kthvalue(round(LAYER_CUT * size.shape[1]), dim=1, keepdim=True).values
            m.weight.mul_(size > limit)
        rises.append(round(_loss(model, tokenizer, text, 100) - whole, 5))
        for m, weight in zip(linears, kept):
            m.weight.copy_(weight)
    return rises


STAGES = {"fine-tune": fine_tune, "prefer": prefer, "prune": prune, "retrieve": retrieve}
