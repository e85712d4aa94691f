"""What the shipped tasks are worth: how far one gets on them without doing what they ask.

    python calib_data/baselines.py [--model calib_data/tiny-llama] [--json FILE]

Prints one table a task: the model, the model on contexts that don't belong to the choices, and
heuristics that read the text alone. Naive Bayes is fitted on the training split. Where a heuristic
likes several choices equally it scores the right one's share, so nothing depends on their order.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

sys.path.insert(0, str(Path(__file__).resolve().parent))

from generate import DOMAINS, Item, item, task_items

TRAINING_ITEMS = 4000
SEED = 7  # of the training split, as in train_tiny_llama.py
SHIFT = 31  # how far away the other item is; prime to the sizes of the tasks

Scores = Sequence[float]


def share_right(gold: int, scores: Scores) -> float:
    """1 if the right choice alone scores highest, 1/k if it ties with k - 1 others, else 0."""
    best = [i for i, score in enumerate(scores) if score == max(scores)]
    return 1 / len(best) if gold in best else 0.0


def accuracy(items: Sequence[Item], scored: Sequence[Scores]) -> float:
    """Mean share_right over items."""
    return float(np.mean([share_right(i.gold, s) for i, s in zip(items, scored, strict=True)]))


# --- heuristics on the text -----------------------------------------------------------------------


def longest(one: Item) -> Scores:
    """Prefers long choices."""
    return [len(choice) for choice in one.choices]


def shortest(one: Item) -> Scores:
    """Prefers short choices."""
    return [-len(choice) for choice in one.choices]


def last_mentioned(one: Item) -> Scores:
    """Prefers the choice that stands last in the context, as a word."""
    places = [
        [found.start() for found in re.finditer(rf"\b{re.escape(choice)}\b", one.context)]
        for choice in one.choices
    ]
    return [max(place, default=-1) for place in places]


def nearest_the_mean(one: Item) -> Scores:
    """Prefers the number nearest to the mean of the choices."""
    numbers = [float(choice) for choice in one.choices]
    return [-abs(number - sum(numbers) / len(numbers)) for number in numbers]


def most_frequent(training: Sequence[Item]) -> Callable[[Item], Scores]:
    """Prefers the choice that is right most often in the training split."""
    counts = Counter(one.answer for one in training)
    return lambda one: [counts[choice] for choice in one.choices]


def naive_bayes(
    training: Sequence[Item], part: Callable[[Item], str]
) -> Callable[[Sequence[Item]], list[Scores]]:
    """A bag-of-words naive Bayes (Laplace smoothing) of the answer given a part of the context."""
    model = make_pipeline(
        CountVectorizer(token_pattern=r"[^\s.?]+", lowercase=False), MultinomialNB()
    )
    model.fit([part(one) for one in training], [one.answer for one in training])
    column = {answer: i for i, answer in enumerate(model.classes_)}

    def scores(items: Sequence[Item]) -> list[Scores]:
        logs = model.predict_log_proba([part(one) for one in items])
        return [
            [row[column[c]] if c in column else -np.inf for c in one.choices]
            for one, row in zip(items, logs, strict=True)
        ]

    return scores


# What a naive Bayes may read of each domain's items, apart from the whole context.
PARTS = {
    "story": (),
    "arithmetic": ("question", "last"),
    "entailment": ("premise", "hypothesis"),
    "commonsense": (),
}


def text_baselines(
    domain: str, items: Sequence[Item], training: Sequence[Item]
) -> dict[str, float]:
    """Accuracy of every heuristic that reads the text alone."""
    simple = {
        "most frequent answer": most_frequent(training),
        "longest choice": longest,
        "shortest choice": shortest,
        "last mentioned": last_mentioned,
    }
    if domain == "arithmetic":
        simple["nearest the mean of the choices"] = nearest_the_mean
    found = {name: accuracy(items, [rule(one) for one in items]) for name, rule in simple.items()}
    for part in PARTS[domain]:
        scores = naive_bayes(training, lambda one, part=part: one.parts[part])
        found[f"words of the {part} alone"] = accuracy(items, scores(items))
    scores = naive_bayes(training, lambda one: one.context)
    found["words of the whole context"] = accuracy(items, scores(items))
    return found


# --- the model on contexts of other items ---------------------------------------------------------


def other_of(items: Sequence[Item], number: int) -> Item:
    """Another item, of the same relation where items have one, always the same one."""
    own = items[number].parts.get("relation")
    alike = [i for i, one in enumerate(items) if one.parts.get("relation") == own]
    return items[alike[(alike.index(number) + SHIFT) % len(alike)]]


def with_word_of(text: str, other: str) -> str:
    """The text with its last word from another text."""
    word = re.findall(r"\w+", other)[-1]
    return re.sub(r"\w+(\W*)$", rf"{word}\1", text)


def swapped_contexts(domain: str, items: Sequence[Item]) -> dict[str, list[Item]]:
    """Items whose context, or a part of it, is another item's; choices and labels stay."""
    pairs = [(one, other_of(items, number)) for number, one in enumerate(items)]
    found = {"another item's context": [replace(a, context=b.context) for a, b in pairs]}
    if domain == "entailment":
        for part in ("premise", "hypothesis"):
            found[f"another item's word in the {part}"] = [
                _with_part(a, part, with_word_of(a.parts[part], b.parts[part])) for a, b in pairs
            ]
    if domain == "arithmetic":
        for part in ("question", "last"):
            name = {"question": "question", "last": "last expression"}[part]
            found[f"another item's {name}"] = [_with_part(a, part, b.parts[part]) for a, b in pairs]
    return found


def _with_part(one: Item, part: str, text: str) -> Item:
    return replace(one, context=one.context.replace(one.parts[part], text))


def model_scores(model: Any, tokenizer: Any, items: Sequence[Item]) -> list[Scores]:
    """Log-likelihood of every choice after its context, as lm-eval's multiple_choice takes it.

    Args:
        model: a causal language model; `tokenizer` is its own.
    """
    import torch

    scored: list[Scores] = []
    for one in items:
        rows = [one.context + f" {choice}" for choice in one.choices]
        begin = len(tokenizer(one.context)["input_ids"])
        batch = tokenizer(rows, return_tensors="pt", padding=True, padding_side="right")
        with torch.no_grad():
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        each = torch.log_softmax(logits[:, :-1].float(), -1)
        each = each.gather(2, batch["input_ids"][:, 1:, None])[:, :, 0]
        each = each * batch["attention_mask"][:, 1:]
        scored.append(each[:, begin - 1 :].sum(1).tolist())
    return scored


def model_baselines(
    model: Any, tokenizer: Any, domain: str, items: Sequence[Item]
) -> tuple[dict[str, float], dict[str, list[int]]]:
    """The model's accuracy on own and on swapped contexts, and how often it answers what.

    Returns:
        Accuracy by kind of context, and by answer: times right in the key, times chosen, for
        answers that are labels of many items (at most 13 different ones).
    """
    own = model_scores(model, tokenizer, items)
    found = {"the model": accuracy(items, own)}
    for kind in sorted({one.parts["pair"] for one in items if "pair" in one.parts}):
        among = [i for i, one in enumerate(items) if one.parts["pair"] == kind]
        name = f"the model, {len(among)} items whose pair of words is {kind} in training"
        found[name] = accuracy([items[i] for i in among], [own[i] for i in among])
    for name, changed in swapped_contexts(domain, items).items():
        found[f"the model, {name}"] = accuracy(changed, model_scores(model, tokenizer, changed))
    chosen = Counter(one.choices[int(np.argmax(s))] for one, s in zip(items, own, strict=True))
    right = Counter(one.answer for one in items)
    counts = {answer: [right[answer], chosen[answer]] for answer in sorted({*right, *chosen})}
    return found, counts if len(counts) <= 13 else {}


def report(model_path: Path | None) -> dict[str, Any]:
    """All numbers by domain: n, chance, accuracies, counts (the last two of the model too)."""
    model = tokenizer = None
    if model_path is not None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        # bfloat16 is emulated on many CPUs, many times slower.
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(model_path)
    found: dict[str, Any] = {}
    for domain in DOMAINS:
        items = task_items(domain)
        training = [item(SEED, domain, number, "train") for number in range(TRAINING_ITEMS)]
        accuracies: dict[str, float] = {}
        counts: dict[str, list[int]] = {}
        if model is not None:
            accuracies, counts = model_baselines(model, tokenizer, domain, items)
        accuracies |= text_baselines(domain, items, training)
        chance = float(np.mean([1 / len(one.choices) for one in items]))
        found[domain] = {"n": len(items), "chance": chance, "acc": accuracies, "counts": counts}
    return found


def markdown(found: dict[str, Any]) -> str:
    """One table a task, in per cent."""
    lines = []
    for domain, one in found.items():
        lines += [f"### tiny_{domain}: {one['n']} items, chance {100 * one['chance']:.0f} %", ""]
        lines += ["| answered by | right, % |", "|---|---|"]
        lines += [f"| {name} | {100 * acc:.1f} |" for name, acc in one["acc"].items()]
        if one["counts"]:
            told = ", ".join(f"{a} {right}/{got}" for a, (right, got) in one["counts"].items())
            lines += ["", f"Answers (times right / times chosen): {told}."]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("--model", type=Path, default=here / "tiny-llama")
    parser.add_argument("--no-model", action="store_true", help="heuristics on the text alone")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    found = report(None if options.no_model else options.model)
    print(markdown(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
