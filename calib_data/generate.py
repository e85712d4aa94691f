"""The corpus that the package ships: small, of four domains, made by rules, with disjoint splits.

    python calib_data/generate.py [ROOT]     writes demo/*.jsonl and tasks/data/*.jsonl

Domains: story (what happened last decides how it ends), arithmetic (a problem, its steps, the
answer), entailment (does the first sentence make the second one true?) and commonsense (facts, each
in several wordings). An item belongs to one split by a hash of its content, so that no item of one
split occurs in another in the same words. Every draw comes from (seed, domain, split, number)
alone, so that any document can be made without those before it.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import lexicon as lex

SPLITS = ("train", "calibration", "test")
DOMAINS = ("story", "arithmetic", "entailment", "commonsense")
TASK_ITEMS = 240
DEMO_DOCUMENTS = {"calibration": 850, "test": 300}  # of each domain
PER_DOCUMENT = {"story": 1, "arithmetic": 1, "entailment": 1, "commonsense": 2}
LARGEST = 12  # no number of an arithmetic problem is larger


@dataclass(frozen=True)
class Item:
    """One question: a context, the choices that may follow it, which is right.

    Attributes:
        domain: one of DOMAINS.
        context: the text before the answer, without a blank at its end.
        choices: texts of one kind; exactly one is right.
        gold: index of the right one.
        key: content from which the split is drawn.
        group: what a task holds equally often: label, ending, or rank of the right number.
        spans: answers inside the context, such as a step's result; training weighs them too.
        parts: pieces of the context and further facts, for the shortcut baselines.
    """

    domain: str
    context: str
    choices: tuple[str, ...]
    gold: int
    key: str
    group: str
    spans: tuple[str, ...] = ()
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """The right choice."""
        return self.choices[self.gold]

    @property
    def pieces(self) -> list[str]:
        """Context and answer as plain, answer, plain, answer, …; answers begin with a blank."""
        pieces, rest = [], self.context
        for span in self.spans:
            before, rest = rest.split(span, 1)
            pieces += [before, span]
        return [*pieces, rest, f" {self.answer}"]


@dataclass(frozen=True)
class Document:
    """A text of one domain in pieces: plain, answer, plain, answer, …, plain."""

    domain: str
    pieces: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)


def digest(text: str) -> int:
    """A number that depends on the text alone, whatever Python's hash seed."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(key: str) -> str:
    """The split that a key falls into: 80 % train, 10 % calibration, 10 % test."""
    return SPLITS[max(0, digest(key) % 10 - 7)]


# --- commonsense: every fact in five wordings, three of them trained on -------------------------

WORDINGS = {
    "kind": [
        "{X} is a kind of", "Everyone knows that {x} is a type of", "We call {x} a sort of",
        "{X} belongs to the group named", "If you have {x}, you have a",
    ],
    "colour": [
        "The colour of {x} is", "{X} looks", "If you paint {x}, you take", "You know that {x} is",
        "In a picture {x} should be",
    ],
    "place": [
        "You find {x} at the", "The right place for {x} is the", "{X} is often seen at the",
        "To meet {x}, go to the", "{X} belongs to the",
    ],
    "use": [
        "People use {x} to", "{X} is made to", "With {x} you can", "You need {x} when you want to",
        "{X} helps us to",
    ],
    "material": [
        "{X} is made of", "You make {x} from", "The stuff of {x} is", "{X} consists of",
        "To make {x} you need",
    ],
    "sound": [
        "{X} is an animal that", "You hear how {x}", "When it is heard, {x}", "In a story {x}",
        "Every child knows that {x}",
    ],
    "opposite": [
        "The opposite of {x} is", "What is not {x} is", "If it is not {x}, it must be",
        "{X} is the reverse of", "The other end of {x} is",
    ],
}  # fmt: skip


def an(word: str) -> str:
    """The word with its article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def facts() -> list[tuple[str, str, str]]:
    """All facts as (relation, subject, answer)."""
    out = [("kind", an(word), kind) for kind, words in lex.KINDS.items() for word in words]
    for relation, table in (
        ("colour", lex.COLOURS),
        ("place", lex.PLACES),
        ("use", lex.USES),
        ("material", lex.MATERIALS),
        ("sound", lex.SOUNDS),
        ("opposite", lex.OPPOSITES),
    ):
        out += [(relation, subject, answer) for subject, answer in table.items()]
    return out


FACTS = facts()
ANSWERS = {r: sorted({a for other, _, a in FACTS if other == r}) for r in WORDINGS}


def own_wordings(relation: str, subject: str, split: str) -> list[int]:
    """Which wordings of a fact belong to a split: three, one and one of five."""
    order = sorted(range(5), key=lambda i: digest(f"{relation}|{subject}|{i}"))
    return {"train": order[:3], "calibration": order[3:4], "test": order[4:]}[split]


def commonsense(rng: random.Random, split: str) -> Item:
    """A fact in one of the split's wordings; wrong choices answer the same relation elsewhere."""
    relation, subject, answer = rng.choice(FACTS)
    number = rng.choice(own_wordings(relation, subject, split))
    context = WORDINGS[relation][number].format(x=subject, X=subject[0].upper() + subject[1:])
    choices = [answer, *rng.sample([a for a in ANSWERS[relation] if a != answer], 3)]
    rng.shuffle(choices)
    return Item(
        "commonsense",
        context,
        tuple(choices),
        choices.index(answer),
        f"{relation}|{subject}|{number}",
        "",
        parts={"relation": relation},
    )


# --- arithmetic: two steps ------------------------------------------------------------------------


def arithmetic(rng: random.Random, split: str) -> Item:
    """A problem with its steps, up to the result of the last one."""
    rank = rng.randrange(4)  # of the right number among the four, so that its size tells nothing
    while True:
        first, second, third = rng.randint(1, 9), rng.randint(1, 9), rng.randint(1, 9)
        plus, more = rng.random() < 0.5, rng.random() < 0.5
        middle = first + second if plus else first - second
        end = middle + third if more else middle - third
        problem = f"{first} {'-+'[plus]} {second} {'-+'[more]} {third}"
        inside = 0 <= middle <= LARGEST and 0 <= end <= LARGEST
        if inside and rank <= end <= LARGEST - 3 + rank and split_of(problem) == split:
            break
    name, thing = rng.choice(lex.NAMES), rng.choice(lex.COUNTED)
    one = rng.choice(lex.GAINS if plus else lex.LOSSES).format(b=second)
    two = rng.choice(lex.GAINS if more else lex.LOSSES).format(b=third)
    question = f"{name} has {first} {thing}. {name} {one}, then {two}."
    last = f"{middle} {'-+'[more]} {third} ="
    choices = [end, *_wrong_numbers(rng, (first, second, third, middle), end, rank)]
    rng.shuffle(choices)
    return Item(
        "arithmetic",
        f"{question} {first} {'-+'[plus]} {second} = {middle}. {last}",
        tuple(map(str, choices)),
        choices.index(end),
        problem,
        f"rank {rank}",
        (f" {middle}.",),
        {"question": question, "last": last},
    )


def _wrong_numbers(
    rng: random.Random, operands: tuple[int, int, int, int], end: int, rank: int
) -> list[int]:
    """`rank` numbers below `end` and the others above: other results of the same operands first."""
    results = {a + sign * b for a in operands for b in operands for sign in (-1, 0, 1)}
    found = []
    for many, side in (
        (rank, [n for n in range(LARGEST + 1) if n < end]),
        (3 - rank, [n for n in range(LARGEST + 1) if n > end]),
    ):
        rng.shuffle(side)
        found += sorted(side, key=lambda n: n not in results)[:many]
    return found


# --- entailment: does one property of a person follow from another? -------------------------------

WORDS = {
    word: (row, pole)
    for row, poles in enumerate(lex.PROPERTIES)
    for pole, words in enumerate(poles)
    for word in words
}
LABELS = ("yes", "no", "maybe")


def relation_of(premise: str, hypothesis: str) -> str:
    """The label: yes in the same pole, no in opposite ones, maybe for another property."""
    (row, pole), (other_row, other_pole) = WORDS[premise], WORDS[hypothesis]
    return "maybe" if row != other_row else "yes" if pole == other_pole else "no"


def unseen_pair(premise: str, hypothesis: str) -> bool:
    """Whether this pair of words occurs in test items alone (about one in twelve)."""
    return digest(f"pair|{premise}|{hypothesis}") % 12 == 0


def entailment(rng: random.Random, split: str) -> Item:
    """A premise and a question; every word stands equally often with each label on either side."""
    while True:
        premise_word, label = rng.choice(sorted(WORDS)), rng.choice(LABELS)
        fitting = [w for w in WORDS if w != premise_word and relation_of(premise_word, w) == label]
        word = rng.choice(fitting)
        who = rng.choice([*lex.NAMES, *(f"the {person}" for person in lex.PEOPLE)])
        verb = rng.choice(["is", "was"])
        key = f"{who}|{verb}|{premise_word}|{word}"
        unseen = unseen_pair(premise_word, word)
        if (split == "test") if unseen else (split_of(key) == split):
            break
    premise = f"{who[0].upper() + who[1:]} {verb} {premise_word}."
    hypothesis = f"{verb.capitalize()} {who} {word}?"
    return Item(
        "entailment",
        f"{premise} {hypothesis}",
        LABELS,
        LABELS.index(label),
        key,
        label,
        parts={
            "premise": premise,
            "hypothesis": hypothesis,
            "pair": "unseen" if unseen else "seen",
        },
    )


# --- stories: what happened decides how they end --------------------------------------------------


def story(rng: random.Random, split: str) -> Item:
    """A story of four or five short sentences, up to the feeling that ends it.

    Two things happen that lead to different feelings, and the later one decides: which words
    occur doesn't tell the ending, their order does.
    """
    endings = sorted(lex.EVENTS)
    while True:
        name = rng.choice(lex.NAMES)
        other, feeling = rng.sample(endings, 2)
        before, decisive = (
            rng.choice(lex.EVENTS[kind]).format(
                n=name, t=rng.choice(lex.THINGS), w=rng.choice(lex.WHO)
            )
            for kind in (other, feeling)
        )
        scene = rng.choice(lex.SCENES).format(n=name)
        after = [sentence.format(n=name) for sentence in rng.sample(lex.AFTER, rng.randint(0, 1))]
        text = " ".join([scene, f"First {before}.", f"Later {decisive}.", *after])
        if split_of(text) == split:
            break
    rng.shuffle(endings)
    return Item(
        "story",
        f"{text} In the end {name} felt",
        tuple(endings),
        endings.index(feeling),
        text,
        feeling,
        parts={"before": before, "event": decisive},
    )


MAKERS: dict[str, Callable[[random.Random, str], Item]] = {
    "story": story,
    "arithmetic": arithmetic,
    "entailment": entailment,
    "commonsense": commonsense,
}


def item(seed: int, domain: str, number: int, split: str) -> Item:
    """Item `number` of a domain's endless stream in a split."""
    return MAKERS[domain](random.Random(f"{seed}|{domain}|{split}|{number}"), split)


def document(seed: int, domain: str, number: int, split: str) -> Document:
    """Document `number`: one or a few items in running text."""
    many = PER_DOCUMENT[domain]
    pieces: list[str] = []
    for index in range(number * many, number * many + many):
        own = item(seed, domain, index, split).pieces
        if pieces:
            own[0] = f". {own[0]}"
        pieces += own
    return Document(domain, (*pieces, "."))


def documents(seed: int, split: str, count: int) -> Iterator[Document]:
    """`count` documents of every domain in turn."""
    for number in range(count):
        for domain in DOMAINS:
            yield document(seed, domain, number, split)


def task_items(domain: str, count: int = TASK_ITEMS, split: str = "test") -> list[Item]:
    """Distinct items, equally many of every group; all facts, once, for commonsense."""
    if domain == "commonsense":
        count = len(FACTS)
    groups = Counter(item(1, domain, number, split).group for number in range(200))
    quota = dict.fromkeys(groups, count // len(groups))
    found: dict[str, Item] = {}
    for number in range(count * 100):
        one = item(1, domain, number, split)
        if one.context not in found and quota[one.group]:
            quota[one.group] -= 1
            found[one.context] = one
        if not any(quota.values()):
            break
    return list(found.values())


def write_all(root: Path) -> None:
    """Write the shipped files under `root`."""
    for split, count in DEMO_DOCUMENTS.items():
        lines = [{"text": d.text, "domain": d.domain} for d in documents(0, split, count)]
        _write(root / "demo" / f"{split}.jsonl", lines)
    for domain in DOMAINS:
        rows = [
            {"context": i.context, "choices": list(i.choices), "gold": i.gold, **i.parts}
            for i in task_items(domain)
        ]
        _write(root / "tasks" / "data" / f"tiny_{domain}.jsonl", rows)


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode())


if __name__ == "__main__":
    write_all(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
