"""The corpus registry: what is shipped, schema faults with file and line, no network."""

from __future__ import annotations

import time

import pytest

import compress.data.hub as hub
from compress.data import load_documents, load_registry
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


def test_a_registry_of_ones_own(tmp_path):
    assert list(load_registry(_write(tmp_path, GOOD))) == ["mine"]


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
