"""Measures, the check before a job, comparison, and the `eval` command's function."""

from __future__ import annotations

import json

import pytest
import torch
from choice_task import TEXT, write_text_and_task

from compress.checkpoints.source import open_source
from compress.errors import RequestError
from compress.evaluation.evaluate import evaluate
from compress.evaluation.measures import Measures, check_request, compare
from compress.evaluation.measuring import measure
from tiny_models import make_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluate")
    write_text_and_task(path, "red", range(10))
    make_checkpoint("llama", path / "one", seed=0)
    make_checkpoint("llama", path / "two", seed=1)
    make_checkpoint("bert", path / "bert")
    make_checkpoint("llama", path / "silent", tokenizer=False)
    make_checkpoint("bart", path / "bart")
    return path


@pytest.fixture
def options(place):
    return {
        "ppl": [str(place / "boat.txt")],
        "tasks": ["my_choice"],
        "task_dirs": [place / "tasks"],
        "eval_seqlen": 32,
        "device": "cpu",
    }


def _measured(place, name, **more):
    source = open_source(place / name)
    return measure(
        source.load(),
        source.tokenizer(),
        ppl=str(place / "boat.txt"),
        tasks=["my_choice"],
        task_dirs=[place / "tasks"],
        seqlen=32,
        **more,
    )


def _nothing_unmeasured(value):
    if isinstance(value, dict):
        assert value, "an empty part stands for nothing"
        for part in value.values():
            _nothing_unmeasured(part)
    assert value is not None


def test_one_model_in_contracts_shape(place, options):
    result = evaluate(place / "one", speed=True, **options).as_dict()
    assert result["schema"] == 1
    (entry,) = result["models"]
    assert entry["source"] == str(place / "one")
    assert set(entry["perplexity"][options["ppl"][0]]) >= {"value", "stderr", "tokens"}
    assert set(entry["tasks"]["my_choice"]) >= {"acc", "stderr", "n"}
    assert set(entry["speed"]) >= {"prefill_tokens_per_s", "decode_tokens_per_s", "peak_bytes"}
    assert "comparison" not in result
    _nothing_unmeasured(result)
    json.dumps(result, allow_nan=False)


def test_against_compares_each_model_on_the_same_examples(place, options):
    found = evaluate([place / "one"], against=place / "two", **options)
    result = found.as_dict()
    spec = options["ppl"][0]
    one, two = result["models"]
    assert one["comparison"] == result["comparison"]
    difference = result["comparison"]["perplexity"][spec]
    values = [model["perplexity"][spec]["value"] for model in (one, two)]
    assert difference["difference"] == pytest.approx(values[0] - values[1])
    scores = [model["tasks"]["my_choice"]["acc"] for model in (one, two)]
    task = result["comparison"]["tasks"]["my_choice"]
    assert task["difference"] == pytest.approx(scores[0] - scores[1])
    assert "comparison" not in two
    json.dumps(result, allow_nan=False)


def test_a_model_against_itself_is_the_same(place, options):
    result = evaluate([place / "one", place / "two"], against=place / "two", **options).as_dict()
    assert len(result["models"]) == 2
    assert result["against"] == str(place / "two")
    first = _measured(place, "one")
    same = compare(first, first)
    assert same["perplexity"][options["ppl"][0]]["p"] == 1
    assert same["tasks"]["my_choice"]["difference"] == 0


def test_the_table_names_models_and_says_what_is_noise(place, options):
    text = evaluate([place / "one"], against=place / "two", speed=True, **options).render()
    assert "boat.txt" in text
    assert "my_choice" in text
    assert "not distinguishable" in text or "95 %" in text
    assert max(map(len, text.splitlines())) <= 80


def test_measures_survive_json_to_the_last_bit(place):
    first = _measured(place, "one", speed=True)
    again = Measures.from_json(first.to_json())
    assert again.as_receipt() == first.as_receipt()
    assert again.tasks == first.tasks
    for key, value in first.perplexity.items():
        assert torch.equal(value.losses, again.perplexity[key].losses)
    assert compare(first, again) == compare(first, first)


def test_other_windows_are_left_out_of_a_comparison(place):
    source = open_source(place / "one")
    model, tokenizer = source.load(), source.tokenizer()
    spec = str(place / "boat.txt")
    first = measure(model, tokenizer, ppl=spec, seqlen=32)
    second = measure(model, tokenizer, ppl=spec, seqlen=16)
    assert compare(first, second) == {}


def test_a_request_serves_several_models(place):
    request = check_request(ppl=[str(place / "boat.txt")], source=open_source(place / "one"))
    assert list(request.texts.values()) == [[TEXT]]
    source = open_source(place / "two")
    found = measure(source.load(), source.tokenizer(), request=request, seqlen=32)
    assert list(found.perplexity) == [str(place / "boat.txt")]


# ---- faults, each before anything is measured


@pytest.fixture
def never_load(monkeypatch):
    from compress.checkpoints.source import Source

    def load(self, *args, **kwargs):
        raise AssertionError("a model was loaded before the request was checked")

    monkeypatch.setattr(Source, "load", load)


@pytest.mark.usefixtures("never_load")
@pytest.mark.parametrize(
    ("model", "change", "said"),
    [
        ("one", {"ppl": ["gone.txt"]}, "no such file"),
        ("one", {"ppl": ["wikitxt2"]}, "wikitxt2"),
        ("one", {"tasks": ["my_choise"]}, "my_choise"),
        ("one", {"eval_seqlen": 129}, "limit of 128"),
        ("one", {"ppl": [], "tasks": []}, "nothing to measure"),
        ("one", {"device": "abacus"}, "abacus"),
        ("gone", {}, "gone"),
        ("bert", {}, "BertForMaskedLM"),
        ("bart", {}, "causal language model"),
        ("silent", {}, "no tokenizer"),
    ],
)
def test_bad_requests(place, options, model, change, said):
    with pytest.raises(RequestError, match=said) as error:
        evaluate(place / model, **{**options, **change})
    assert error.value.code == 2


@pytest.mark.usefixtures("never_load")
def test_check_request_knows_the_model(place):
    with pytest.raises(RequestError, match="limit of 128"):
        check_request(ppl=[str(place / "boat.txt")], source=open_source(place / "one"), seqlen=500)
    with pytest.raises(RequestError, match="BertForMaskedLM"):
        check_request(ppl=[str(place / "boat.txt")], source=open_source(place / "bert"))
    with pytest.raises(RequestError, match="below the window"):
        check_request(ppl=[str(place / "boat.txt")], seqlen=32, stride=32)
