"""Text to rows: nothing lost, nothing seen twice in an epoch, in an order a counter fixes."""

import gzip
import itertools
import json
import pickle

import numpy as np
import pytest
import torch

import tiny_models
from compress.data.specs import load_documents, parse_spec
from compress.data.streaming import iter_documents
from compress.errors import RequestError
from compress.training.data import (
    PackedRows,
    Positions,
    TokenStore,
    encode_documents,
    encode_samples,
    write_store,
)
from compress.training.objectives import NextTokenCollator
from compress.training.packed import check_separation

TOKENIZER = tiny_models.tiny_tokenizer()


def stored(specs, place, **options):
    return write_store(
        encode_documents(parse_spec(specs), TOKENIZER, **options), place, vocabulary=128
    )


@pytest.fixture
def store(text, tmp_path):
    return stored(str(text), tmp_path / "store")


def test_the_stream_is_the_documents_with_their_ends(text, store):
    documents = load_documents(parse_spec(str(text))[0])
    expected, starts = [], []
    for document in documents:
        starts.append(len(expected))
        expected += [*TOKENIZER(document, add_special_tokens=False)["input_ids"], 2]
    assert store.ids.tolist() == expected
    assert store.starts.tolist() == starts
    assert store.tokens == len(expected)
    assert store.documents == len(documents)
    assert store.ids.dtype == np.uint16
    assert store.largest == max(expected)


def test_the_digest_is_of_the_tokens_alone(text, store, tmp_path, monkeypatch):
    monkeypatch.setattr("compress.training.data._CHUNK", 100)
    again = stored(str(text), tmp_path / "again")
    assert again.digest == store.digest
    other = tmp_path / "other.txt"
    other.write_text("another text")
    assert stored(str(other), tmp_path / "third").digest != store.digest


def test_a_finished_store_is_opened_not_made_again(text, store):
    def fail():
        raise AssertionError("read again")
        yield

    assert write_store(fail(), store.directory, vocabulary=128).digest == store.digest


def test_large_vocabularies_take_four_bytes(tmp_path):
    parts = [([type("E", (), {"ids": [70000, 1], "starts": True, "answer": -1})()], 0)]
    store = write_store(parts, tmp_path / "s", vocabulary=100_000)
    assert store.ids.tolist() == [70000, 1]
    assert store.ids.dtype == np.uint32


@pytest.mark.parametrize("kind", ["txt", "jsonl", "jsonl.gz", "csv", "parquet", "json", "folder"])
def test_streaming_gives_what_loading_gives(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("compress.data.streaming._PIECE", 64)
    documents = [f"line {i}, é and 𝄞\nsecond line" for i in range(30)]
    rows = [{"text": d, "n": i} for i, d in enumerate(documents)]
    place = tmp_path / f"data.{kind}"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if kind == "txt":
        place.write_text("\n".join(documents), encoding="utf-8")
    elif kind == "jsonl":
        place.write_text(lines, encoding="utf-8")
    elif kind == "jsonl.gz":
        place.write_bytes(gzip.compress(lines.encode()))
    elif kind == "json":
        place.write_text(json.dumps(rows))
    elif kind == "folder":
        place.mkdir()
        (place / "train-0.jsonl").write_text(lines, encoding="utf-8")
        (place / "train-1.jsonl").write_text(lines, encoding="utf-8")
        (place / "test-0.jsonl").write_text('{"text": "not for training"}')
    else:
        import pyarrow as arrow
        from pyarrow import csv, parquet

        table = arrow.Table.from_pylist(rows)
        (csv.write_csv if kind == "csv" else parquet.write_table)(table, place)
    (spec,) = parse_spec(str(place))
    found, current = [], ""
    for piece in iter_documents(spec):
        current += piece.text
        if piece.ends:
            found.append(current)
            current = ""
    assert current == ""
    assert found == load_documents(spec)


def test_a_large_text_is_never_whole_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.data.streaming._PIECE", 1000)
    place = tmp_path / "long.txt"
    place.write_text("a line of some words\n" * 2000)
    pieces = list(iter_documents(parse_spec(str(place))[0]))
    assert max(len(piece.text) for piece in pieces) < 2100
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].read == place.stat().st_size
    whole = stored(str(place), tmp_path / "store")
    assert whole.documents == 1
    assert whole.tokens == place.stat().st_size + 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "good"}\nbroken\n', "a.jsonl:2: not JSON"),
        ("b.jsonl", '{"text": "good"}\n' * 150 + '{"text": 3}\n', "b.jsonl:151: column `text`"),
        ("c.txt", "fine\0", "binary"),
    ],
)
def test_broken_text_is_named_and_leaves_no_store(name, content, said, tmp_path):
    place = tmp_path / name
    place.write_text(content)
    with pytest.raises(RequestError, match=said):
        stored(str(place), tmp_path / "store")
    assert not (tmp_path / "store" / "meta.json").exists()


def test_rows_cover_the_stream_and_see_one_token_ahead(store):
    rows = PackedRows(store, 24)
    assert len(rows) == (store.tokens - 1) // 24
    joined = np.concatenate([rows[r]["input_ids"] for r in range(len(rows))])
    assert joined.tolist() == store.ids[: len(joined)].tolist()
    assert [rows[r]["next"] for r in range(3)] == store.ids[[24, 48, 72]].tolist()
    behind = PackedRows(store, 24, ahead=False)
    assert "next" not in behind[0]


def test_every_position_has_its_next_token_as_label(store):
    rows = PackedRows(store, 24)
    batch = NextTokenCollator(TOKENIZER)([rows[0], rows[3]])
    stream = torch.from_numpy(store.ids.astype(np.int64))
    assert torch.equal(batch["shift_labels"][1], stream[73:97])
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert batch.keys() == {"input_ids", "labels", "shift_labels"}


def test_an_epoch_shows_every_row_once_and_the_next_in_another_order(store):
    rows = PackedRows(store, 24)
    n = len(rows)
    run = Positions(rows, 2 * n, seed=3)
    assert len(run) == 2 * n
    places = [run.place(p) for p in range(2 * n)]
    first, second = [r for r, e in places[:n]], [r for r, e in places[n:]]
    assert sorted(first) == sorted(second) == list(range(n))
    assert first != second != list(range(n))
    assert {e for _, e in places[:n]} == {0}
    assert {e for _, e in places[n:]} == {1}
    assert [Positions(rows, n, seed=4).place(p)[0] for p in range(n)] != first
    item = run[n + 5]
    assert (item["row"], item["epoch"], item["position"]) == (second[5], 1, n + 5)
    assert torch.equal(item["input_ids"], rows[second[5]]["input_ids"])


def test_a_run_can_be_sent_to_a_worker(store):
    run = Positions(PackedRows(store, 24), 100, seed=0)
    before = run[7]
    assert store._maps
    sent = pickle.dumps(run)
    assert len(sent) < 2000  # neither tokens nor orders travel
    assert torch.equal(pickle.loads(sent)[7]["input_ids"], before["input_ids"])


def test_separate_documents_restart_positions_and_predict_nothing_across(tmp_path):
    place = tmp_path / "d.jsonl"
    texts = ["abcdefg", "hi", "jklmnopqrstuvwxyz", "0123456789012345"]
    place.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    rows = PackedRows(stored(str(place), tmp_path / "s"), 8, separate=True)
    ends = list(itertools.accumulate(len(t) + 1 for t in texts))
    for r in range(len(rows)):
        batch = NextTokenCollator(TOKENIZER)([rows[r]])
        for t in range(8):
            at = 8 * r + t
            begin = max([8 * r, *[e for e in ends if e <= at]])
            assert batch["position_ids"][0, t] == at - begin
            crosses = at + 1 in ends
            assert (batch["shift_labels"][0, t] == -100) == crosses


def test_separate_documents_come_out_as_if_alone():
    model = tiny_models.build("llama")
    first, second = torch.arange(10, 19)[None], torch.arange(30, 37)[None]
    packed = model(
        input_ids=torch.cat([first, second], 1),
        position_ids=torch.cat([torch.arange(9), torch.arange(7)])[None],
        use_cache=False,
    ).logits
    assert torch.allclose(packed[:, 9:], model(input_ids=second).logits, atol=1e-5)
    together = model(input_ids=torch.cat([first, second], 1), use_cache=False).logits
    assert not torch.allclose(together[:, 9:], packed[:, 9:], atol=1e-2)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gpt_neox"])
def test_families_that_keep_documents_apart(arch):
    check_separation(tiny_models.build(arch))


def test_a_family_that_does_not_is_refused():
    with pytest.raises(RequestError, match="OPTForCausalLM"):
        check_separation(tiny_models.build("opt"))


def test_samples_know_where_the_answer_begins(questions, tmp_path):
    encoded = encode_samples(parse_spec(str(questions)), TOKENIZER, ("q", "a"))
    store = write_store(encoded, tmp_path / "s", vocabulary=128)
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    assert store.documents == len(rows)
    ends = [*store.starts.tolist()[1:], store.tokens]
    for row, start, answer, end in zip(rows, store.starts, store.answers, ends):
        ids = store.ids[start:end].tolist()
        assert TOKENIZER.decode(ids[:answer]) == row["q"] + "\n"
        assert TOKENIZER.decode(ids[answer:-1]) == row["a"]
        assert ids[-1] == TOKENIZER.eos_token_id


def test_a_store_reopens(store):
    again = TokenStore(store.directory)
    assert again.ids.tolist() == store.ids.tolist()
    assert (again.digest, again.documents) == (store.digest, store.documents)
