"""Prompts of long-context tasks: exact lengths and depths, the answer once, draws by counters."""

from __future__ import annotations

import json

import pytest
import torch

from compress.errors import RequestError
from compress.evaluation.long_context import NAMES
from compress.evaluation.long_context.haystack import Haystack, read_haystack
from compress.evaluation.long_context.items import TooShort
from compress.evaluation.long_context.longreason import longreason_item
from compress.evaluation.long_context.multidoc import multidoc_item, positions
from compress.evaluation.long_context.needle import needle_item
from compress.evaluation.long_context.planning import LongTasks, limited
from compress.evaluation.long_context.qa_files import read_questions
from compress.evaluation.long_context.settings import LongContext, read_settings
from compress.evaluation.long_context.writing import Draw, Writer, alike
from tiny_models import tiny_tokenizer

DOCUMENTS = [f"On day {i} the boat left the harbour. Nobody saw it go. " * 3 for i in range(40)]


@pytest.fixture(scope="module")
def demo_tokenizer(demo_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_model)


@pytest.fixture(scope="module", params=["characters", "demo"])
def writer(request):
    if request.param == "characters":
        return Writer(tiny_tokenizer())
    return Writer(request.getfixturevalue("demo_tokenizer"))


@pytest.fixture(scope="module")
def hay(writer):
    return read_haystack(writer, DOCUMENTS, 1024)


def _plan(tokenizer, limit=None, **settings):
    settings = LongContext(given=frozenset(settings), **settings)
    return LongTasks(settings).plan(tokenizer, limit)


# ---- needle


@pytest.mark.parametrize("length", [200, 317, 1024])
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.37, 1.0])
def test_a_needle_has_its_exact_length_and_depth(writer, hay, length, depth):
    item = needle_item(writer, hay, length=length, depth=depth, index=3, seed=0, choices=4)
    assert len(item.prompt) + len(item.answers[0]) == item.length == length
    ((first, last),) = item.evidence
    front = len(writer.prefix)
    room = item.question - front - (last - first)
    assert first - front == round(depth * room)


@pytest.mark.parametrize("index", range(6))
def test_the_answer_stands_in_the_needle_once_and_no_other_anywhere(writer, hay, index):
    item = needle_item(writer, hay, length=300, depth=0.5, index=index, seed=1, choices=4)
    text = writer.text(item.prompt)
    answers = [writer.text(answer).strip() for answer in item.answers]
    assert len(set(answers)) == 4
    assert [text.count(answer) for answer in answers] == [1, 0, 0, 0]
    ((first, last),) = item.values
    assert writer.text(item.prompt[first:last]).strip() == answers[0]
    ((start, end),) = item.evidence
    assert start < first < last <= end
    assert writer.text(item.prompt[start:end]).strip().endswith(f"is {answers[0]}.")
    place = writer.text(item.prompt[start:end]).split(" of ")[1].split(" is")[0]
    question = writer.text(item.prompt[item.question :])
    assert question == (
        f"\n\nWhat is the secret number of {place}? The secret number of {place} is"
    )


def test_the_text_before_a_needle_ends_with_a_sentence(writer, hay):
    for index in range(8):
        item = needle_item(writer, hay, length=400, depth=0.5, index=index, seed=0, choices=2)
        before = writer.text(item.prompt[: item.evidence[0][0]])
        assert before.rstrip().endswith(".")


def test_the_haystack_is_a_contiguous_piece_of_the_text(writer, hay):
    item = needle_item(writer, hay, length=300, depth=0.4, index=0, seed=0, choices=2)
    first, last = item.evidence[0]
    front = len(writer.prefix)
    around = torch.cat([item.prompt[front:first], item.prompt[last : item.question]])
    stream = torch.cat([hay.tokens, hay.tokens[:400]])
    windows = stream.unfold(0, len(around), 1)
    assert bool((windows == around).all(1).any())


def test_a_length_without_room_says_what_is_needed(writer, hay):
    with pytest.raises(TooShort) as error:
        needle_item(writer, hay, length=20, depth=0.5, index=0, seed=0, choices=4)
    item = needle_item(
        writer, hay, length=error.value.needed + 20, depth=0.5, index=0, seed=0, choices=4
    )
    assert item.length == error.value.needed + 20


# ---- chains


@pytest.mark.parametrize("hops", [1, 3])
def test_a_chain_leads_from_the_question_to_its_value(writer, hay, hops):
    item = longreason_item(writer, hay, length=900, hops=hops, index=2, seed=0, choices=3)
    assert item.length == 900
    text = writer.text(item.prompt)
    body, _, question = text.partition("\n\nWhat does box ")
    holds = {}
    for statement in body.replace("?", ".").split("."):
        if " Box " in f" {statement}" and " holds " in statement:
            name, _, value = statement.partition("Box ")[2].partition(" holds ")
            holds[name] = value
    assert len(holds) == 3 * (hops + 1)
    name, steps = question[:2], 0
    seen = []
    while holds[name].startswith("the same as box "):
        seen.append(body.index(f"Box {name} holds"))
        name, steps = holds[name][-2:], steps + 1
    seen.append(body.index(f"Box {name} holds"))
    assert steps == hops
    assert holds[name] == writer.text(item.answers[0]).strip()
    assert seen == sorted(seen, reverse=True)  # each name is told before it is used
    others = {writer.text(answer).strip() for answer in item.answers[1:]}
    assert others == {v for v in holds.values() if v.isdigit()} - {holds[name]}
    assert all(body.count(value) == 1 for value in others)
    assert len(item.evidence) == hops + 1
    said = [writer.text(item.prompt[a:b]) for a, b in item.evidence]
    assert all(" holds" in sentence and sentence.endswith(".") for sentence in said)


# ---- documents


@pytest.mark.parametrize(("documents", "position"), [(3, 1), (5, 4), (10, 10)])
def test_the_document_with_the_answer_stands_at_its_position(writer, documents, position):
    item = multidoc_item(
        writer, [], documents=documents, position=position, index=1, seed=0, choices=3, limit=None
    )
    text = writer.text(item.prompt)
    lines = [line for line in text.split("\n") if line.startswith("Document [")]
    assert len(lines) == documents
    answer = writer.text(item.answers[0]).strip()
    assert [n for n, line in enumerate(lines, 1) if answer in line] == [position]
    person = text.partition("Where does ")[2].partition(" live?")[0]
    assert lines[position - 1].startswith(f"Document [{position}] {person} lives in {answer} and")
    assert sum(person in line for line in lines) == 1
    for other in item.answers[1:]:
        assert sum(writer.text(other).strip() in line for line in lines) == 1
    first, last = item.evidence[0]
    assert writer.text(item.prompt[first:last]).strip() == lines[position - 1]


def test_positions_cover_both_ends():
    assert positions(2) == [1, 2]
    assert positions(10)[0] == 1
    assert positions(10)[-1] == 10
    assert len(positions(20)) == 5


QA = [
    {"question": f"what is thing {i}?", "support": f"thing {i} is a widget{i} indeed",
     "correct_answer": f"widget{i}", "distractor1": "gizmo"}
    for i in range(12)
]  # fmt: skip


def test_a_file_of_questions(writer, tmp_path):
    path = tmp_path / "qa.jsonl"
    rows = [*QA, {"question": "lost?", "support": "nothing here", "correct_answer": "gone"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = read_questions(str(path))
    assert len(questions) == 12  # the one whose passage lacks the answer is left out
    item = multidoc_item(
        writer, questions, documents=4, position=3, index=0, seed=0, choices=3, limit=None
    )
    text = writer.text(item.prompt)
    answer = writer.text(item.answers[0]).strip()
    lines = [line for line in text.split("\n") if line.startswith("Document [")]
    number = answer.removeprefix("widget")
    assert lines[2] == f"Document [3] thing {number} is a {answer} indeed"
    assert len(set(lines)) == 4
    assert writer.text(item.answers[1]).strip() == "gizmo"
    first, last = item.values[0]
    assert writer.text(item.prompt[first:last]).strip() == answer


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question": "q", "text": "t"}], "no column `passage`"),
        ([{"question": "q", "passage": "p", "answer": "x"}] * 3, "0 of 3 rows"),
        ([7], "an object is needed"),
    ],
)
def test_files_that_hold_no_questions(tmp_path, rows, said):
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RequestError, match=said):
        read_questions(str(path))


def test_real_questions(assets, demo_tokenizer):
    plan = _plan(
        demo_tokenizer,
        tasks=("multidoc",),
        documents=(5,),
        per_cell=2,
        qa=str(assets / "data" / "sciq_validation.jsonl"),
    )
    for item in plan["multidoc"].items:
        text = demo_tokenizer.decode(item.prompt)
        answer = demo_tokenizer.decode(item.answers[0]).strip()
        assert answer.casefold() in text.casefold()


# ---- all of them


def test_draws_come_from_seed_and_counters_alone(demo_tokenizer):
    make = {"lengths": (256,), "hops": (1,), "documents": (3,)}
    first = _plan(demo_tokenizer, depths=(0.5,), per_cell=2, **make)
    more = _plan(demo_tokenizer, depths=(0.0, 0.5), per_cell=3, **make)
    other = _plan(demo_tokenizer, depths=(0.5,), per_cell=2, seed=1, **make)
    for task in NAMES:
        keys = {item.key for item in first[task].items}
        assert len(keys) == len(first[task].items)
        assert keys <= {item.key for item in more[task].items}
        assert not keys & {item.key for item in other[task].items}
        for item in first[task].items:
            twin = next(i for i in more[task].items if i.key == item.key)
            assert torch.equal(item.prompt, twin.prompt)


def test_a_limit_covers_all_cells(demo_tokenizer):
    planned = _plan(demo_tokenizer, tasks=("needle",), lengths=(128, 256), per_cell=4)["needle"]
    items = limited(planned, 10)
    assert len(items) == 10
    assert len({item.cell for item in items}) == 10


def test_the_default_lengths_lie_below_the_limit(demo_tokenizer):
    planned = _plan(demo_tokenizer, 256, tasks=("needle",), per_cell=6)["needle"]
    assert {item.length for item in planned.items} == {128, 256}
    assert planned.left_out == ("64 tokens",)


def test_answers_have_one_length_where_the_tokenizer_has_such():
    writer = Writer(tiny_tokenizer())
    draw = Draw(0, 1)
    words = ["a", "bb", "cc", "ddd", "ee", "ff"]
    values = alike(writer, lambda: draw.choice(words), 3)
    sizes = {len(value) for value in values}
    assert len(set(values)) == 3
    assert len(sizes) == 1 or len(values[0]) in (1, 3)


def test_a_haystack_is_a_ring():
    hay = Haystack(torch.arange(10), torch.tensor([0, 4, 7]))
    assert hay.run(-2, 5).tolist() == [8, 9, 0, 1, 2]
    assert hay.run(8, 14).tolist() == [8, 9, *range(10), 0, 1]
    assert hay.starts_before(4, [0, 2, 3, 5, 6, 9, 10]) == [0, 0, 3, 3, 6, 6, 10]


def test_a_tokenizer_that_loses_text_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    lossy = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    with pytest.raises(RequestError, match="can't write the prompts"):
        _plan(lossy, tasks=("multidoc",))


@pytest.mark.parametrize(
    ("tasks", "options", "said"),
    [
        ((), {"depths": (0.5,)}, "`--depths` needs `--tasks needle`"),
        (("multidoc",), {"lengths": (64,)}, "`--context-lengths` needs"),
        (("needle",), {"hops": (2,)}, "`--hops` needs `--tasks longreason`"),
        ((), {"png": "x.png"}, "`--png` needs"),
        (("needle",), {"depths": (1.5,)}, "from 0 to 1"),
        (("needle",), {"depths": (0.5, 0.5)}, "twice"),
        (("needle",), {"depths": (float("nan"),)}, "from 0 to 1"),
        (("needle",), {"lengths": (0,)}, "at least 2 tokens"),
        (("longreason",), {"hops": (0,)}, "from 1 to 100"),
        (("multidoc",), {"documents": (1,)}, "from 2 to 1000"),
        (("multidoc",), {"qa": "gone.jsonl"}, "no such file"),
        (("needle",), {"per_cell": 0}, "per-cell 0"),
        (("needle",), {"choices": 1}, "from 2 to 20"),
    ],
)
def test_bad_settings(tasks, options, said):
    with pytest.raises(RequestError, match=said):
        read_settings(tasks, 0, **options)
