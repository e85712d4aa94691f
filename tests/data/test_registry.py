"""The corpus registry: what is shipped, schema faults with file and line, no network."""

from __future__ import annotations

import functools
import json
import os
import time

import pytest

import compress.data.hub as hub
from compress.data import corpora, load_documents, load_examples, load_registry
from compress.errors import RequestError

GOOD = """schema: 1
corpora:
  mine:
    hub: someone/mine
    splits: {calibration: train}
    column: text
    columns: [text]
    licence: MIT
"""


def _write(tmp_path, text):
    path = tmp_path / "registry.yaml"
    path.write_text(text)
    return path


def test_the_shipped_registry_describes_every_corpus():
    known = load_registry()
    assert {"demo", "c4", "wikitext2", "ptb", "pile", "redpajama", "openwebtext"} <= set(known)
    for corpus in known.values():
        assert corpus.licence
        assert corpus.about
        assert corpus.has_role("calibration")
        if corpus.has_role("evaluation") and corpus.hub:
            assert corpus.splits["calibration"] != corpus.splits["evaluation"]


def test_the_corpora_of_the_paper_and_the_usual_ones_are_there():
    known = load_registry()
    groups = {
        "pre-training": {"c4", "pile", "oscar", "redpajama", "wikitext2", "ptb", "fineweb"},
        "arithmetic": {"gsm8k", "svamp", "mawps"},
        "nli": {"esnli", "anli_r1", "anli_r2", "anli_r3", "rte"},
        "commonsense": {"commonsense_qa", "race", "winogrande", "boolq"},
        "instruction": {"ultrachat", "open_platypus"},
        "control": {"ellipses", "random"},
        "model": {"self"},
        "demo": {"demo"},
    }
    for group, names in groups.items():
        assert names <= {name for name, corpus in known.items() if corpus.group == group}
    with_templates = {name for name, corpus in known.items() if "prompt" in corpus.templates}
    for group in ("arithmetic", "nli", "commonsense", "instruction"):
        assert groups[group] <= with_templates
    reasoned = {name for name, corpus in known.items() if "rationale" in corpus.templates}
    assert reasoned == {"gsm8k", "esnli", "anli_r1", "anli_r2", "anli_r3"}
    assert all(corpus.size for corpus in known.values())


def test_a_registry_of_ones_own(tmp_path):
    path = _write(tmp_path, GOOD)
    assert list(load_registry(path)) == ["mine"]
    assert set(corpora(path)) == {"mine", *load_registry()}
    path.write_text(GOOD.replace("mine:", "yours:"))
    os.utime(path, ns=(1, 1))  # a file that changed is read anew
    assert list(load_registry(path)) == ["yours"]


LIKE = """schema: 1
corpora:
  gsm8k:
    like: gsm8k
    local: {calibration: a.jsonl, evaluation: b.jsonl}
  both:
    like: gsm8k
    local: {calibration: one.json, evaluation: one.json}
    rows: {calibration: 2}
    skip: {evaluation: 2}
"""


def _asked(number):
    return {"question": f"q{number}", "answer": f"r\n#### {number}"}


def test_an_entry_takes_over_another_and_lies_beside_its_registry(tmp_path):
    path = _write(tmp_path, LIKE)
    for name, first in (("a", 0), ("b", 10)):
        rows = [json.dumps(_asked(first + i)) + "\n" for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    (tmp_path / "one.json").write_text(json.dumps([_asked(i) for i in range(5)]))
    mine = corpora(path)["gsm8k"]
    assert not mine.hub
    assert not mine.splits
    assert mine.templates == load_registry()["gsm8k"].templates
    read = functools.partial(load_documents, registry=path)
    assert read("gsm8k@zero-shot") == [f"Question: q{i}\nAnswer: " for i in range(3)]
    assert read("gsm8k:question", role="evaluation") == ["q10", "q11", "q12"]
    assert read("both:question") == ["q0", "q1"]
    assert read("both:question", role="evaluation") == ["q2", "q3", "q4"]
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(RequestError, match="no such file") as error:
        read("gsm8k")
    assert "relative to the registry" in error.value.hint


def test_a_misspelt_name_is_near_a_users_own_too(tmp_path):
    with pytest.raises(RequestError, match="neither a file nor a corpus") as error:
        load_documents("mime", registry=_write(tmp_path, GOOD))
    assert "did you mean `mine`" in error.value.hint


RICH = """schema: 1
corpora:
  mine:
    local: {calibration: a.jsonl}
    column: q
    columns: [q, a]
    fields:
      label: {from: kind, names: [x, y]}
    templates:
      prompt: "{q} "
      answer: "{label}"
    licence: MIT
  own:
    sampled: {temperature: 0.7}
    licence: none
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ('"{label}"', '"{lable}"', 10, "names `{lable}`, which is no column or field"),
        ('"{q} "', '"{q.x} "', 10, "no plain name"),
        ('"{q} "', '"{q"', 10, "expected"),
        ("      prompt", "      promt", 10, "is no template"),
        ('      prompt: "{q} "\n', "", 10, "needs a `prompt`"),
        ("from: kind", "form: kind", 8, "is no step of a field"),
        ("from: kind, ", "", 8, "lacks `from`"),
        ("names: [x, y]", "drop: '['", 8, "no regular expression"),
        ("temperature: 0.7", "temperature: 0.0", 14, "needs to be above 0"),
        ("temperature: 0.7", "temperatur: 0.7", 14, "is no option of sampling"),
        ("temperature: 0.7", "top_k: 0.5", 14, "needs a whole number"),
        ("sampled: {temperature: 0.7}", "made: noise", 14, "one of dots, characters"),
        ("sampled: {temperature: 0.7}", "like: theirs", 14, "no corpus `theirs`"),
    ],
)
def test_a_fault_of_fields_and_templates_names_file_and_line(tmp_path, old, new, line, said):
    assert set(load_registry(_write(tmp_path, RICH))) == {"mine", "own"}
    path = _write(tmp_path, RICH.replace(old, new, 1))
    os.utime(path, ns=(2, 2))
    with pytest.raises(RequestError) as error:
        load_registry(path)
    assert f"registry.yaml:{line}:" in error.value.message
    assert said in error.value.message
    assert error.value.code == 2


def test_a_template_fault_lists_columns_and_fields(tmp_path):
    with pytest.raises(RequestError) as error:
        load_registry(_write(tmp_path, RICH.replace('"{label}"', '"{lable}"')))
    assert error.value.hint == "those there are: q, a, label"


@pytest.mark.parametrize("spec", ["gsm8k@icl", "esnli@cot"])
def test_a_format_of_a_network_name_offline_says_what_to_do(spec):
    with pytest.raises(RequestError, match="offline") as error:
        load_examples(spec)
    assert "like: " in error.value.hint
    assert "local copy" in error.value.hint


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("    licence: MIT\n", "", 4, "lacks `licence`"),
        ("column: text", "column: body", 6, "`body` is not among"),
        ("columns: [text]", "columns: text", 7, "list of strings"),
        ("licence: MIT", "licence: 5", 8, "needs a string"),
        ("licence: MIT", "license: MIT", 8, "no field"),
        ("{calibration: train}", "{training: train}", 5, "role `training`"),
        ("    hub: someone/mine\n", "", 4, "either `hub` or `local`"),
        ("    licence: MIT\n", "    licence: MIT\n    licence: BSD\n", 9, "written twice"),
        ("[text]", "[text", 8, "expected"),
        ("corpora:", "corpus:", 1, "no `corpora`"),
    ],
)
def test_a_schema_fault_names_file_and_line(tmp_path, old, new, line, said):
    path = _write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(RequestError) as error:
        load_registry(path)
    assert f"registry.yaml:{line}:" in error.value.message
    assert said in error.value.message


@pytest.mark.parametrize("name", ["c4", "wikitext2", "fineweb"])
def test_a_network_name_offline_fails_at_once_and_says_what_to_do(name):
    start = time.monotonic()
    with pytest.raises(RequestError, match="offline") as error:
        load_documents(name)
    assert time.monotonic() - start < 20  # importing `datasets` included
    assert "--calib demo" in error.value.hint
    assert "local copy" in error.value.hint


def test_an_unreachable_hub_is_asked_once(monkeypatch):
    import huggingface_hub

    asked = []

    def refuse(self, *args, **kwargs):
        asked.append(kwargs["timeout"])
        raise ConnectionError("name or service not known")

    monkeypatch.setattr(hub, "is_offline", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(RequestError, match="can't be reached"):
        load_documents("c4")
    assert asked == [hub.PROBE_SECONDS]


def test_a_hub_corpus_is_asked_for_by_its_entry(monkeypatch):
    import datasets

    seen = {}

    def fake(path, config, **kwargs):
        seen.update(path=path, config=config, **kwargs)
        rows = datasets.Dataset.from_dict({"text": ["", "a", "b"]})
        return rows.to_iterable_dataset() if kwargs["streaming"] else rows

    monkeypatch.setattr(hub, "is_offline", lambda: False)
    monkeypatch.setattr(hub, "_probe", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", fake)
    # The published protocol joins the rows, blank ones too, by two newlines.
    assert load_documents("wikitext2", role="evaluation") == ["\n\na\n\nb"]
    assert seen["path"] == "Salesforce/wikitext"
    assert (seen["config"], seen["split"]) == ("wikitext-2-raw-v1", "test")
    assert load_documents("c4", limit=2) == ["", "a"]
    assert seen["streaming"]
    assert list(seen["data_files"]) == ["train"]


def test_a_corpus_without_a_held_out_split_is_not_evaluated_on():
    with pytest.raises(RequestError, match="no split for evaluation") as error:
        load_documents("fineweb", role="evaluation")
    assert "wikitext2" in error.value.hint


def test_a_column_that_the_entry_lacks():
    with pytest.raises(RequestError, match="no text column `body`"):
        load_documents("c4:body")
