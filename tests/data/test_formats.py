"""Formats: the words of every template, whole examples, real tokens, demonstrations, chat."""

from __future__ import annotations

import json

import pytest
import torch
from number_texts import Words, numbers

from compress.data import load_documents, load_examples, parse_mix, prepare_calibration
from compress.data.formats import read_format
from compress.errors import RequestError
from tiny_models import tiny_tokenizer

GSM8K = {
    "question": "How many?",
    "answer": "Two and two make <<2+2=4>>4.\nSo four\n#### 4",
}
NLI = {"premise": "A dog runs.", "hypothesis": "An animal runs.", "label": 0}
ROWS = {
    "gsm8k": GSM8K,
    "svamp": {"Body": "Ann has 2.", "Question": "How many?", "Equation": "( 2.0 )"},
    "mawps": {"question": "How many?", "expression": "2 + 2", "result": "4"},
    "esnli": {**NLI, "explanation_1": "A dog is an animal."},
    "anli_r1": {**NLI, "label": 2, "reason": "It is one."},
    "anli_r3": {**NLI, "label": 1, "reason": "Who knows."},
    "rte": {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 1},
    "commonsense_qa": {
        "question": "Where?",
        "choices": {"label": list("ABCDE"), "text": ["here", "there", "up", "down", "in"]},
        "answerKey": "B",
    },
    "race": {
        "article": "A story.",
        "question": "Who?",
        "options": ["Ann", "Ben", "Cem", "Dan"],
        "answer": "C",
    },
    "winogrande": {"sentence": "_ is it.", "option1": "x", "option2": "y", "answer": "2"},
    "boolq": {"passage": "It is so.", "question": "is it so", "answer": True},
    "ultrachat": {
        "prompt": "Hi?",
        "messages": [
            {"role": "user", "content": "Hi?"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Bye."},
        ],
    },
    "open_platypus": {"instruction": "Do it.", "input": "", "output": "Done."},
}
NLI_PROMPT = "Premise: A dog runs.\nHypothesis: An animal runs.\nLabel: "
GOLDEN = {  # prompt, answer
    "gsm8k": ("Question: How many?\nAnswer: ", "4"),
    "svamp": ("Question: Ann has 2. How many?\nAnswer: ", "( 2.0 )"),
    "mawps": ("Question: How many?\nAnswer: ", "2 + 2"),
    "esnli": (NLI_PROMPT, "entailment"),
    "anli_r1": (NLI_PROMPT, "contradiction"),
    "anli_r3": (NLI_PROMPT, "neutral"),
    "rte": ("Premise: It rains.\nHypothesis: It is wet.\nLabel: ", "not_entailment"),
    "commonsense_qa": (
        "Question: Where?\nChoices:\nA. here\nB. there\nC. up\nD. down\nE. in\nAnswer: ",
        "B",
    ),
    "race": (
        "Article: A story.\nQuestion: Who?\nOptions:\nA. Ann\nB. Ben\nC. Cem\nD. Dan\n\nAnswer: ",
        "C",
    ),
    "winogrande": ("Sentence: _ is it.\nOptions:\n1. x\n2. y\nAnswer: ", "2"),
    "boolq": ("Passage: It is so.\nQuestion: is it so?\nAnswer: ", "yes"),
    "ultrachat": ("User: Hi?\nAssistant: ", "Hello."),
    "open_platypus": ("### Instruction:\n\nDo it.\n\n### Response:\n", "Done."),
}
REASONED = {
    "gsm8k": "Two and two make 4.\nSo four. So the answer is 4.",
    "esnli": "A dog is an animal. So the answer is entailment.",
    "anli_r1": "It is one. So the answer is contradiction.",
    "anli_r3": "Who knows. So the answer is neutral.",
}


@pytest.fixture
def registry(tmp_path):
    """Makes a registry that points entries of the shipped one to rows given here."""

    def make(**rows):
        lines = ["schema: 1", "corpora:"]
        for name, given in rows.items():
            file = tmp_path / f"{name}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in given))
            local = f"{{calibration: {file.name}}}"
            lines.append(f"  {name}: {{like: {name}, local: {local}}}")
        path = tmp_path / "registry.yaml"
        path.write_text("\n".join(lines) + "\n")
        return path

    return make


@pytest.mark.parametrize("name", GOLDEN)
def test_the_words_of_a_template(registry, name):
    known = registry(**{name: [ROWS[name]]})
    prompt, answer = GOLDEN[name]
    (example,) = load_examples(f"{name}@icl", registry=known)
    assert (example.prompt, example.answer) == (prompt, answer)
    (asked,) = load_examples(f"{name}@zero-shot", registry=known)
    assert (asked.prompt, asked.answer) == (prompt, "")
    assert load_documents(f"{name}@zero-shot", registry=known) == [prompt]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_chain_of_thought_is_another_text_or_refused(registry, name):
    known = registry(**{name: [ROWS[name]]})
    if name in REASONED:
        (example,) = load_examples(f"{name}@cot", registry=known)
        assert example.answer == REASONED[name]
        return
    with pytest.raises(RequestError, match="no rationale field") as error:
        load_examples(f"{name}@icl-cot", registry=known)
    assert "@icl`" in error.value.hint


def test_another_layout_of_the_same_data(registry):
    old = {
        "question": {
            "stem": "Where?",
            "choices": [
                {"label": "A", "text": "here"},
                {"label": "B", "text": "there"},
            ],
        },
        "answerKey": "A",
    }
    (example,) = load_examples("commonsense_qa@icl", registry=registry(commonsense_qa=[old]))
    assert example.prompt == "Question: Where?\nChoices:\nA. here\nB. there\nAnswer: "
    words = {**NLI, "label": "contradiction", "explanation_1": "no ."}
    (example,) = load_examples("esnli@icl", registry=registry(esnli=[words]))
    assert example.answer == "contradiction"


def test_rows_without_a_label_or_a_reason_are_passed_over(registry):
    rows = [{**NLI, "label": label, "reason": why} for label, why in
            [(-1, "x"), (0, ""), (1, "so."), (2, None)]]  # fmt: skip
    known = registry(anli_r1=rows)
    assert [e.row for e in load_examples("anli_r1@icl", registry=known)] == [1, 2, 3]
    assert [e.row for e in load_examples("anli_r1@cot", registry=known)] == [2]
    with pytest.raises(RequestError, match="none of its 1 rows"):
        load_examples("anli_r1@icl", registry=registry(anli_r1=rows[:1]))


def test_a_column_that_a_template_names_and_the_data_lack(registry):
    with pytest.raises(RequestError, match="no column `premise`") as error:
        load_examples("esnli@icl", registry=registry(esnli=[{"text": "x", "label": 0}]))
    assert error.value.hint == "its columns: text, label"


def test_a_label_that_stands_for_nothing(registry):
    with pytest.raises(RequestError, match="label 7 stands for nothing"):
        load_examples("rte@icl", registry=registry(rte=[{**ROWS["rte"], "label": 7}]))


def test_shots_are_taken_off_the_name():
    assert read_format("icl-4").shots == 4
    assert read_format("icl-cot-12").shots == 12
    assert read_format("icl").shots is None
    assert read_format("raw") is None
    for wrong in ("icl-0", "icl-x", "few-shot", "cot-3"):
        with pytest.raises(RequestError, match="unknown format"):
            read_format(wrong)


# ---- windows

PAIRS = [{"question": f"q{i}", "answer": f"r{i}\n#### {i}"} for i in range(200)]


def _texts(batches, tokenizer):
    """Decode the real tokens of every window."""
    found = []
    for batch in batches:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        found += [tokenizer.decode(ids[own].tolist()) for ids, own in zip(batch["input_ids"], mask)]
    return found


def test_a_window_holds_whole_demonstrations_and_padding_that_is_told(registry):
    tokenizer = tiny_tokenizer()
    known = registry(gsm8k=PAIRS)
    options = {"samples": 6, "seqlen": 100, "registry": known}
    batches, report = prepare_calibration("gsm8k@icl", tokenizer, batch_size=3, **options)
    texts = _texts(batches, tokenizer)
    for text in texts:
        parts = text.split("\n\n")
        assert all(part.startswith("Question: q") for part in parts)
        assert all(part[-1].isdigit() for part in parts)
        assert len(text) <= 100 < len(text) + 2 + 25
    assert report.tokens == sum(map(len, texts))
    assert report.cut == 0
    # Each example once, and those that its rows say.
    seen = [
        int(p.split("\n")[0].removeprefix("Question: q")) for t in texts for p in t.split("\n\n")
    ]
    assert seen == [row for rows in report.rows for row in rows]
    assert len(set(seen)) == len(seen)
    masked = [batch for batch in batches if "attention_mask" in batch]
    assert masked
    assert all(len(b["input_ids"][0]) == int(b["attention_mask"].sum(1).max()) for b in masked)


def test_one_window_a_batch_needs_no_padding(registry):
    known = registry(gsm8k=PAIRS)
    options = {"samples": 6, "seqlen": 100, "registry": known}
    one, first = prepare_calibration("gsm8k@icl", tiny_tokenizer(), batch_size=1, **options)
    many, second = prepare_calibration("gsm8k@icl", tiny_tokenizer(), batch_size=6, **options)
    assert all(set(batch) == {"input_ids"} for batch in one)
    assert _texts(one, tiny_tokenizer()) == _texts(many, tiny_tokenizer())
    assert first == second


def test_k_shots_stay_together(registry):
    tokenizer = tiny_tokenizer()
    known = registry(gsm8k=PAIRS)
    batches, _ = prepare_calibration(
        "gsm8k@icl-2", tokenizer, samples=4, seqlen=120, registry=known
    )
    for text in _texts(batches, tokenizer):
        prompts = text.split("</s>")
        assert len(prompts) == 2
        assert all(prompt.count("Question:") == 2 for prompt in prompts)


def test_alone_or_in_one_prompt(registry):
    tokenizer = tiny_tokenizer()
    known = registry(gsm8k=PAIRS)
    options = {"samples": 3, "seqlen": 120, "registry": known}
    for form, between in (("cot", "</s>"), ("zero-shot", "</s>"), ("icl-cot", "\n\n")):
        batches, _ = prepare_calibration(f"gsm8k@{form}", tokenizer, **options)
        for text in _texts(batches, tokenizer):
            assert text.count(between) == text.count("Question:") - 1 > 0
            assert text.endswith("Answer: ") == (form == "zero-shot")


def test_formats_of_one_data_set_take_the_same_rows(registry):
    rows = [dict(row) for row in PAIRS]
    rows[7]["answer"] = "#### 7"  # no reasoning: chain of thought leaves it out
    known = registry(gsm8k=rows)
    orders = {}
    for form in ("zero-shot", "icl", "cot", "icl-cot"):
        _, report = prepare_calibration(
            f"gsm8k@{form}", tiny_tokenizer(), samples=5, seqlen=100, registry=known, seed=2
        )
        orders[form] = [row for part in report.rows for row in part]
    shortest = min(map(len, orders.values()))
    without = {form: [r for r in rows if r != 7][: shortest - 1] for form, rows in orders.items()}
    assert len({tuple(rows) for rows in without.values()}) == 1


def test_an_example_longer_than_a_window_is_cut_and_counted(registry):
    known = registry(gsm8k=[{"question": "long " * 40, "answer": "r\n#### 1"}, *PAIRS[:9]])
    batches, report = prepare_calibration(
        "gsm8k@zero-shot", tiny_tokenizer(), samples=6, seqlen=60, registry=known, seed=1
    )
    assert report.cut == 1
    assert max(len(b["input_ids"][0]) for b in batches) == 60


def test_fewer_examples_than_asked_says_how_many(registry):
    known = registry(gsm8k=PAIRS[:10])
    with pytest.raises(RequestError) as error:
        prepare_calibration("gsm8k@icl", tiny_tokenizer(), samples=50, seqlen=100, registry=known)
    assert "in 10 examples" in error.value.message
    assert "of 50 windows" in error.value.message
    assert error.value.code == 2
    with pytest.raises(RequestError, match="asks for 12 examples a prompt and has 10"):
        prepare_calibration("gsm8k@icl-12", tiny_tokenizer(), samples=1, registry=known)


def test_demonstrations_never_come_from_the_evaluation_split(tmp_path):
    for split, rows in (("train", PAIRS[:40]), ("test", PAIRS[40:60])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    known = tmp_path / "registry.yaml"
    local = "{calibration: train.jsonl, evaluation: test.jsonl}"
    known.write_text(f"schema: 1\ncorpora:\n  gsm8k: {{like: gsm8k, local: {local}}}\n")
    batches, _ = prepare_calibration(
        "gsm8k@icl", tiny_tokenizer(), samples=10, seqlen=100, registry=known
    )
    words = " ".join(_texts(batches, tiny_tokenizer())).split()
    assert not {f"q{i}" for i in range(40, 60)} & set(words)
    with pytest.raises(RequestError, match="never from an evaluation split"):
        load_documents("gsm8k@icl", role="evaluation", registry=known)
    assert len(load_documents("gsm8k@cot", role="evaluation", registry=known)) == 20


def test_a_format_needs_documents_not_windows_of_long_ones(registry):
    with pytest.raises(RequestError, match="is of examples"):
        prepare_calibration(
            "gsm8k@icl", tiny_tokenizer(), registry=registry(gsm8k=PAIRS), doc_sampling="long"
        )


def test_a_chat_template_writes_conversations_unless_turned_off(registry):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    known = registry(gsm8k=PAIRS)
    options = {"samples": 2, "seqlen": 120, "registry": known}
    shown, _ = prepare_calibration("gsm8k@icl-2", tokenizer, **options)
    asked, _ = prepare_calibration("gsm8k@zero-shot", tokenizer, **options)
    plain, _ = prepare_calibration("gsm8k@icl-2", tokenizer, chat_template=False, **options)
    first = _texts(shown, tokenizer)[0]
    assert first.startswith("[user]Question: q")  # the template's own <s> isn't doubled
    assert first.count("[user]") == first.count("[assistant]") == 2
    assert all(part.endswith("[assistant]") for part in _texts(asked, tokenizer)[0].split("</s>"))
    assert "[user]" not in _texts(plain, tokenizer)[0]


def test_a_chat_template_that_refuses_says_what_to_do(registry):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(RequestError, match="no such role") as error:
        prepare_calibration("gsm8k@icl", tokenizer, registry=registry(gsm8k=PAIRS), samples=1)
    assert "--no-chat-template" in error.value.hint


# ---- mixes and budgets


def test_a_mix_is_taken_apart(registry):
    known = registry(gsm8k=PAIRS)
    mix = parse_mix("gsm8k@icl=0.25+demo:text=0.75", known)
    assert [(p.name, p.column, p.format, p.share) for p in mix.parts] == [
        ("gsm8k", None, "icl", 0.25),
        ("demo", "text", "raw", 0.75),
    ]
    assert mix.format == "mixed"
    assert [p.share for p in parse_mix("demo,gsm8k", known).parts] == [0.5, 0.5]
    assert parse_mix("demo").name == "demo"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("demo=0.5,c4", "`c4` has no share"),
        ("demo=0.5,c4=0.4", "sum to 0.9"),
        ("demo=0,c4=1", "above 0"),
        ("demo=2", "at most 1"),
    ],
)
def test_shares_that_cannot_be(text, said):
    with pytest.raises(RequestError, match=said):
        parse_mix(text)


@pytest.fixture
def corpora(tmp_path):
    """Two files of numbers, below and above 50,000."""
    paths = []
    for name, start in (("low", 1_000), ("high", 50_000)):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"text": numbers(start + 40 * i, 30 + i % 7)} for i in range(300)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(str(path))
    return paths


@pytest.mark.parametrize("share", [0.5, 0.7, 0.1])
def test_shares_are_of_the_tokens_and_kept_at_any_time(corpora, share):
    low, high = corpora
    spec = f"{low}={share}+{high}={round(1 - share, 1)}"
    batches, report = prepare_calibration(spec, Words(), samples=40, seqlen=32)
    lows = torch.tensor([int(b["input_ids"][0, 0]) < 50_000 for b in batches])
    assert int(lows.sum()) == round(share * 40)
    for n in range(1, 41):
        assert abs(int(lows[:n].sum()) - share * n) <= 1
    assert [part["tokens"] for part in report.parts] == [
        32 * int(lows.sum()), 32 * int((~lows).sum())
    ]  # fmt: skip
    few, _ = prepare_calibration(spec, Words(), samples=20, seqlen=32)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(few, batches))


def test_a_mix_of_one_and_nothing_is_that_one(corpora):
    low, _ = corpora
    alone, _ = prepare_calibration(low, Words(), samples=8, seqlen=32)
    mixed, _ = prepare_calibration(f"{low}=1", Words(), samples=8, seqlen=32)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(alone, mixed))


def test_a_part_that_runs_out_is_named(corpora, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text(numbers(1, 50))
    with pytest.raises(RequestError, match=r"short.txt=0.5` is too short|short.txt` is too short"):
        prepare_calibration(f"{corpora[0]}=0.5+{short}=0.5", Words(), samples=20, seqlen=32)


@pytest.mark.parametrize(
    "spec", ["gsm8k@icl", "gsm8k@zero-shot", "gsm8k", "gsm8k@icl=0.3+demo=0.7"]
)
@pytest.mark.parametrize("tokens", [300, 777])
def test_a_budget_of_real_tokens_is_met_exactly(registry, spec, tokens):
    known = registry(gsm8k=PAIRS)
    batches, report = prepare_calibration(
        spec, tiny_tokenizer(), seqlen=100, tokens=tokens, registry=known, batch_size=4
    )
    real = sum(int(b.get("attention_mask", torch.ones_like(b["input_ids"])).sum()) for b in batches)
    assert report.tokens == real == tokens
    assert report.windows == sum(len(b["input_ids"]) for b in batches)


def test_disjoint_sets_share_no_window_and_one_of_one_is_all(corpora):
    sets = [
        prepare_calibration(corpora[0], Words(), samples=10, seqlen=32, disjoint=(i, 3))[0]
        for i in range(3)
    ]
    seen = [set(torch.cat([b["input_ids"] for b in s]).flatten().tolist()) - {1} for s in sets]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    whole, _ = prepare_calibration(corpora[0], Words(), samples=3, seqlen=32)
    assert torch.equal(whole[1]["input_ids"], sets[1][0]["input_ids"])


# ---- how documents become windows


def test_long_takes_windows_at_every_place_the_last_included(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": numbers(1000, 36)}, {"text": numbers(10, 5)}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    batches, report = prepare_calibration(
        str(path), Words(), samples=200, seqlen=32, doc_sampling="long"
    )
    starts = {int(b["input_ids"][0, 0]) - 1000 for b in batches}
    assert starts == {0, 1, 2, 3, 4}
    assert all((b["input_ids"].diff(dim=1) == 1).all() for b in batches)
    assert set(report.rows) == {(0,)}
    few, _ = prepare_calibration(str(path), Words(), samples=9, seqlen=32, doc_sampling="long")
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(few, batches))


def test_no_document_as_long_as_a_window_says_the_longest(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": numbers(100 * i, 5 + i % 20)} for i in range(500)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RequestError) as error:
        prepare_calibration(str(path), Words(), samples=4, seqlen=32, doc_sampling="long")
    assert "no document is as long as a window of 32; the longest of 500 has 24" in str(error.value)
    assert "--doc-sampling packed" in error.value.hint


def test_long_and_nothing_but_evaluation_text_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(numbers(1000, 200))
    held = tmp_path / "b.txt"
    held.write_text(numbers(990, 220))
    with pytest.raises(RequestError, match="evaluation text"):
        prepare_calibration(
            str(path), Words(), samples=4, seqlen=100, doc_sampling="long", held_out=str(held)
        )


def test_isolated_documents_begin_anew(corpora):
    batches, report = prepare_calibration(
        corpora[0], Words(bos=0), samples=6, seqlen=80, doc_sampling="isolated", batch_size=3
    )
    assert report.tokens == 480
    for batch in batches:
        assert "attention_mask" not in batch
        ids, places = batch["input_ids"], batch["position_ids"]
        assert torch.equal(ids == 0, places == 0)  # a document begins with the beginning of text
        assert (places.diff(dim=1)[places[:, 1:] != 0] == 1).all()
        assert (ids != 1).all()


def test_an_unknown_way_to_sample(corpora):
    with pytest.raises(RequestError, match="isn't a way to sample") as error:
        prepare_calibration(corpora[0], Words(), doc_sampling="random")
    assert "packed, isolated, long" in error.value.hint


# ---- controls and selection


def test_the_bad_ends_differ_by_seed_and_repeat():
    tokenizer = tiny_tokenizer()
    first, a = prepare_calibration("random", tokenizer, samples=3, seqlen=64)
    _, b = prepare_calibration("random", tokenizer, samples=3, seqlen=64)
    _, c = prepare_calibration("random", tokenizer, samples=3, seqlen=64, seed=1)
    assert a.digest == b.digest != c.digest
    assert all(text.isalnum() for text in _texts(first, tokenizer))
    dots, _ = prepare_calibration("ellipses", tokenizer, samples=3, seqlen=64)
    assert all(set(text) == {"."} for text in _texts(dots, tokenizer))


def test_diverse_windows_have_more_words_than_random_ones(tmp_path):
    tokenizer = tiny_tokenizer()
    path = tmp_path / "a.jsonl"
    rows = [{"text": "the same few words " * 6}] * 30 + [
        {"text": " ".join(f"w{i * 20 + j}" for j in range(20))} for i in range(6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def words(select):
        options = {"samples": 4, "seqlen": 80, "select": select, "pool": 8}
        batches, _ = prepare_calibration(str(path), tokenizer, **options)
        return len({word for text in _texts(batches, tokenizer) for word in text.split()})

    assert words("diverse") > 1.5 * words("random")


def test_selection_is_the_greedy_choice():
    from compress.data.selection import most_new_words

    generator = torch.Generator().manual_seed(0)
    pool = [set(torch.randint(0, 60, (12,), generator=generator).tolist()) for _ in range(40)]
    lengths = torch.randint(5, 15, (40,), generator=generator).tolist()
    seen, slow, left = set(), [], list(range(40))
    for _ in range(10):  # the definition, by trying all
        best = max(left, key=lambda i: (len(pool[i] - seen) / lengths[i], -i))
        slow.append(best)
        left.remove(best)
        seen |= pool[best]
    assert most_new_words(pool, lengths, 10) == slow


def test_a_model_is_needed_for_cola(corpora):
    with pytest.raises(RequestError, match="needs a model"):
        prepare_calibration(corpora[0], Words(), select="cola")
    with pytest.raises(RequestError, match="isn't a selection") as error:
        prepare_calibration(corpora[0], Words(), select="diverce")
    assert "did you mean `diverse`" in error.value.hint
