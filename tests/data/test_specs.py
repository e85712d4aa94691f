"""Data specs: how they are taken apart, what every kind of source gives, and every fault."""

from __future__ import annotations

import gzip
import json

import pytest

from compress.data import DataSpec, load_documents, parse_mix, parse_mixes, parse_spec
from compress.errors import RequestError


def _jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- grammar


def test_a_plain_name_and_a_path(inside):
    (inside / "a.txt").write_text("words")
    assert parse_spec("demo") == [DataSpec("demo", "demo")]
    assert parse_spec("a.txt") == [DataSpec("a.txt", "a.txt")]


def test_column_and_format_and_several():
    first, second = parse_spec("demo:text,c4@raw")
    assert (first.name, first.column, first.format) == ("demo", "text", "raw")
    assert (second.name, second.column, second.format) == ("c4", None, "raw")
    both = parse_spec("demo:text@raw")[0]
    assert (both.name, both.column, both.format) == ("demo", "text", "raw")
    assert [s.name for s in parse_spec(["demo,c4", "pile"])] == ["demo", "c4", "pile"]


def test_separators_in_an_existing_path_belong_to_it(inside):
    for name in ("a:b.txt", "me@home.txt", "one,two.txt"):
        (inside / name).write_text("words")
        assert parse_spec(name) == [DataSpec(name, name)]
        assert load_documents(name) == ["words"]


def test_separators_of_a_mix_in_an_existing_path_belong_to_it(inside):
    for name in ("a+b.txt", "x=0.5.txt", "one,two.txt"):
        (inside / name).write_text("words")
        for text in (name, f"{name}=1"):
            (part,) = parse_mix(text).parts
            assert (part.name, part.share) == (name, 1.0)
    first, second = parse_mix("a+b.txt=0.25,x=0.5.txt=0.75").parts
    assert (first.name, first.share) == ("a+b.txt", 0.25)
    assert (second.name, second.share) == ("x=0.5.txt", 0.75)
    assert [mix.text for mix in parse_mixes("demo,c4=0.5+pile=0.5")] == ["demo", "c4=0.5+pile=0.5"]
    with pytest.raises(RequestError, match="only a calibration set has shares"):
        parse_spec("demo=0.5")


def test_a_column_after_a_path_that_holds_separators(inside):
    _jsonl(inside / "me@home.jsonl", [{"body": "x", "other": "y"}])
    spec = parse_spec("me@home.jsonl:body")[0]
    assert (spec.name, spec.column, spec.format) == ("me@home.jsonl", "body", "raw")
    assert load_documents(spec) == ["x"]


@pytest.mark.parametrize("kind", ["zero-shot", "icl", "icl-4", "cot", "icl-cot"])
def test_raw_text_has_no_format(kind):
    with pytest.raises(RequestError, match=f"raw text, which has no format `{kind}`") as error:
        parse_spec(f"demo@{kind}")
    assert "`prompt` template" in error.value.hint


def test_an_unknown_format_lists_the_known_ones():
    with pytest.raises(RequestError, match="unknown format `ilc`") as error:
        parse_spec("demo@ilc")
    assert "did you mean `icl`" in error.value.hint


@pytest.mark.parametrize("text", ["", "demo,,c4", "demo,"])
def test_an_empty_spec_is_refused(text):
    with pytest.raises(RequestError, match="empty"):
        parse_spec(text)


def test_an_empty_column_is_refused():
    with pytest.raises(RequestError, match="empty column"):
        parse_spec("demo:")


# ---- sources


def test_a_text_file_is_one_document_with_its_lines_as_they_are(inside):
    raw = " = Title = \n \n a line \r\n\n"
    (inside / "wiki.raw").write_bytes(raw.encode())
    assert load_documents("wiki.raw") == [raw]


def test_json_lines_keep_unicode_line_separators(inside):
    _jsonl(inside / "a.jsonl", [{"text": "a\u2028b"}, {"text": "c"}])
    (inside / "a.jsonl").write_text('{"text": "a\u2028b"}\n\n{"text": "c"}\n', encoding="utf-8")
    assert load_documents("a.jsonl") == ["a\u2028b", "c"]


def test_json_array_of_objects_and_of_strings_and_lines_under_that_name(inside):
    (inside / "a.json").write_text(json.dumps([{"text": "x"}, {"text": "y"}]))
    (inside / "b.json").write_text(json.dumps(["x", "y"]))
    _jsonl(inside / "c.json", [{"text": "x"}, {"text": "y"}])
    for name in ("a.json", "b.json", "c.json"):
        assert load_documents(name) == ["x", "y"]


def test_gzip_json_lines(inside):
    with gzip.open(inside / "a.json.gz", "wt") as file:
        file.write('{"text": "x"}\n{"text": "y"}\n')
    assert load_documents("a.json.gz") == ["x", "y"]


def test_csv_with_quoted_newlines_and_a_named_column(inside):
    (inside / "a.csv").write_text('id,body,note\n1,"two\nlines",n\n2,one,n\n')
    assert load_documents("a.csv:body") == ["two\nlines", "one"]


def test_a_csv_larger_than_a_reading_block_keeps_its_newlines(inside):
    rows = [f"row {i}\n" + "word \n" * 40 for i in range(12_000)]
    lines = "".join(f'{i},"{row}"\n' for i, row in enumerate(rows))
    (inside / "a.csv").write_text("id,text\n" + lines)
    assert load_documents("a.csv") == rows


def test_parquet_with_nulls_and_the_only_string_column(inside):
    import pyarrow as arrow
    from pyarrow import parquet

    table = arrow.table({"n": [1, 2, 3], "page": ["x", None, "z"]})
    parquet.write_table(table, inside / "a.parquet")
    assert load_documents("a.parquet") == ["x", "", "z"]
    assert load_documents("a.parquet", limit=1) == ["x"]


def test_text_wins_over_other_string_columns(inside):
    _jsonl(inside / "a.jsonl", [{"id": "i", "text": "x"}])
    assert load_documents("a.jsonl") == ["x"]
    assert load_documents("a.jsonl:id") == ["i"]


def test_a_directory_of_splits_gives_each_role_its_own(inside):
    (inside / "d").mkdir()
    _jsonl(inside / "d" / "train-00000.jsonl", [{"text": "train 0"}])
    _jsonl(inside / "d" / "train-00001.jsonl", [{"text": "train 1"}])
    _jsonl(inside / "d" / "test.jsonl", [{"text": "test"}])
    assert load_documents("d") == ["train 0", "train 1"]
    assert load_documents("d", role="evaluation") == ["test"]


def test_a_directory_of_parquet_files_under_a_subdirectory(inside):
    import pyarrow as arrow
    from pyarrow import parquet

    (inside / "d" / "data").mkdir(parents=True)
    (inside / "d" / "dataset_infos.json").write_text("{}")
    for split in ("train", "validation"):
        path = inside / "d" / "data" / f"{split}-00000-of-00001.parquet"
        parquet.write_table(arrow.table({"text": [split]}), path)
    assert load_documents("d") == ["train"]
    assert load_documents("d", role="evaluation") == ["validation"]


def test_a_directory_saved_by_datasets(inside):
    import datasets

    datasets.disable_progress_bars()
    train = datasets.Dataset.from_dict({"text": ["a", "b"], "n": [1, 2]})
    test = datasets.Dataset.from_dict({"text": ["c"], "n": [3]})
    train.save_to_disk("plain")
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk("splits")
    assert load_documents("plain") == ["a", "b"]
    assert load_documents("splits", limit=1) == ["a"]
    assert load_documents("splits", role="evaluation") == ["c"]
    with pytest.raises(RequestError, match="`n` holds no strings"):
        load_documents("plain:n")


# ---- faults


def _fault(spec, **options):
    with pytest.raises(RequestError) as error:
        load_documents(spec, **options)
    assert error.value.code == 2
    assert "\n" not in error.value.message
    return error.value


def test_no_such_file(inside):
    assert "`gone/a.jsonl`: no such file" in _fault("gone/a.jsonl").message
    assert "no such file" in _fault("gone.jsonl:text").message


def test_an_unknown_name_suggests_near_ones():
    error = _fault("wikitxt2")
    assert "`wikitxt2`" in error.message
    assert "did you mean `wikitext2`" in error.hint


def test_a_wrong_column_lists_the_string_columns(inside):
    _jsonl(inside / "a.jsonl", [{"q": "x", "a": "y", "n": 1}])
    assert "q, a" in _fault("a.jsonl:question").hint
    assert "`n` holds no strings" in _fault("a.jsonl:n").message
    several = _fault("a.jsonl")
    assert "more than one string column" in several.message
    assert "q, a" in several.hint


def test_no_string_column(inside):
    _jsonl(inside / "a.jsonl", [{"n": 1}])
    assert "no string column" in _fault("a.jsonl").message


@pytest.mark.parametrize("content", [b"\x00\x01\x02", b"\xff\xfe\x00b", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("name", ["a.bin", "a.jsonl", "a.csv"])
def test_a_binary_file(inside, name, content):
    (inside / name).write_bytes(content)
    assert "binary" in _fault(name).message


def test_a_broken_parquet_file(inside):
    (inside / "a.parquet").write_bytes(b"PAR1 no")
    assert "no readable parquet" in _fault("a.parquet").message


def test_a_broken_line_is_named(inside):
    (inside / "a.jsonl").write_text('{"text": "x"}\n{"text": \n')
    assert "a.jsonl:2" in _fault("a.jsonl").message
    (inside / "b.jsonl").write_text('{"text": "x"}\n[1]\n')
    assert "b.jsonl:2" in _fault("b.jsonl").message
    rows = [{"text": "x"}] * 150 + [{"text": 5}]
    assert "c.jsonl:151" in _fault(_jsonl(inside / "c.jsonl", rows)).message


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_a_file_without_text(inside, content):
    (inside / "a.txt").write_text(content)
    assert "no text" in _fault("a.txt").message
    (inside / "a.jsonl").write_text(content)
    assert "no rows" in _fault("a.jsonl").message or "no text" in _fault("a.jsonl").message


def test_a_text_file_has_no_columns(inside):
    (inside / "a.txt").write_text("words")
    assert "no column `text`" in _fault("a.txt:text").message


def test_a_directory_without_text(inside):
    (inside / "images" / "cat").mkdir(parents=True)
    (inside / "images" / "cat" / "1.png").write_bytes(b"x")
    assert "holds no text" in _fault("images").message


def test_self_needs_a_model():
    assert "dense model" in _fault("self").message
