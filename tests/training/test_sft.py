"""Fine-tuning samples: which labels, which masks, what is copied, cut or dropped."""

import pytest
import torch

import tiny_models
from compress.training.data import Encoded, write_store
from compress.training.objectives import MaskedAnswerCollator, NextTokenCollator, SampleRows

END = 2
# prompt, answer
SAMPLES = [(3, 4), (2, 12), (5, 30), (40, 3), (4, 60)]


@pytest.fixture
def tokenizer():
    found = tiny_models.tiny_tokenizer()
    found.add_special_tokens({"mask_token": "~"})
    return found


@pytest.fixture
def store(tmp_path):
    """Samples whose tokens count up from 10, so that a token tells its place."""
    parts = [
        Encoded([*(10 + i for i in range(p + a)), END], True, p) for p, a in SAMPLES
    ]  # fmt: skip
    return write_store([(parts[:2], 0), (parts[2:], 0)], tmp_path / "s", vocabulary=128)


def kinds(rows):
    return [("copy" if rows[r].get("copy") == 0 else "both" if "copy" in rows[r] else "plain",
             len(rows[r]["input_ids"])) for r in range(len(rows))]  # fmt: skip


def test_plain_samples_label_answer_and_end(store):
    rows = SampleRows(store, 200, end=END)
    assert kinds(rows) == [("plain", p + a + 1) for p, a in SAMPLES]
    batch = NextTokenCollator(tiny_models.tiny_tokenizer(), multiple=8)([rows[0], rows[1]])
    assert batch["input_ids"].shape == (2, 16)
    assert batch["labels"][0].tolist() == [-100] * 3 + [13, 14, 15, 16, END] + [-100] * 8
    assert batch["attention_mask"].sum(1).tolist() == [8, 15]
    assert batch["input_ids"][0, 8:].tolist() == [3] * 8  # the padding token


def test_long_answers_get_a_copy_of_their_own(store):
    rows = SampleRows(store, 200, masked=True, min_response=12, end=END)
    assert kinds(rows)[:5] == kinds(SampleRows(store, 200, end=END))
    assert kinds(rows)[5:] == [("copy", 36), ("copy", 65)]  # not the one of 12


def test_short_and_cut_samples(store):
    rows = SampleRows(store, 40, masked=True, min_response=12, end=END)
    assert (rows.dropped, rows.cut) == (1, 1)  # a prompt of 40; an answer of 60
    assert kinds(rows) == [("plain", 8), ("plain", 15), ("plain", 36), ("plain", 40),
                           ("copy", 36), ("copy", 40)]  # fmt: skip
    cut = rows[3]
    assert cut["input_ids"].tolist() == list(range(10, 50))  # no end, in neither
    assert cut["labels"].tolist() == [-100] * 4 + list(range(14, 50))


@pytest.mark.parametrize("row", [5, 6])
def test_a_copy_labels_its_masks_alone(row, store, tokenizer):
    rows = SampleRows(store, 200, masked=True, min_response=12, end=END)
    prompt, answer = SAMPLES[{5: 2, 6: 4}[row]]
    item = {**rows[row], "row": row, "epoch": 0}
    batch = MaskedAnswerCollator(tokenizer, 0.10, multiple=1)([item])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    masked = ids == tokenizer.mask_token_id
    assert masked.sum() == max(1, answer // 10)
    assert torch.equal(labels != -100, masked)
    assert torch.equal(labels[masked], item["input_ids"][masked])
    assert not masked[:prompt].any()
    assert not masked[-1]  # the end


def test_masks_change_with_the_epoch_and_plain_samples_have_none(store, tokenizer):
    rows = SampleRows(store, 200, masked=True, min_response=12, end=END)
    collate = MaskedAnswerCollator(tokenizer, 0.3)
    first, second = (collate([{**rows[6], "row": 6, "epoch": e}])["input_ids"] for e in (0, 1))
    assert not torch.equal(first, second)
    plain = collate([{**rows[4], "row": 4, "epoch": 0}])
    assert (plain["input_ids"] != tokenizer.mask_token_id).all()
    assert (plain["labels"] != -100).sum() == 61


def test_every_answer_token_is_masked_sooner_or_later(store, tokenizer):
    rows = SampleRows(store, 200, masked=True, min_response=12, end=END)
    collate = MaskedAnswerCollator(tokenizer, 0.3, multiple=1)
    ever = sum(
        (collate([{**rows[5], "row": 5, "epoch": e}])["labels"][0] != -100).int() for e in range(60)
    )
    assert (ever[5:35] > 0).all()
    assert not ever[:5].any()
    assert ever[35] == 0


def test_concat_puts_the_copy_behind_the_original(store, tokenizer):
    rows = SampleRows(store, 100, masked=True, mode="concat", min_response=12, end=END)
    # 65 tokens have no room for a copy in 100
    assert kinds(rows) == [("plain", 8), ("plain", 15), ("both", 72), ("plain", 44), ("plain", 65)]
    assert [rows.tokens(r) for r in range(5)] == [8, 15, 72, 44, 65]
    item = {**rows[2], "row": 2, "epoch": 0}
    batch = MaskedAnswerCollator(tokenizer, 0.10, multiple=1)([item])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    original = torch.tensor([*range(10, 45), END])
    assert torch.equal(ids[:36], original)
    assert labels[:36].tolist() == [-100] * 5 + original[5:].tolist()
    masked = ids[36:] == tokenizer.mask_token_id
    assert masked.sum() == 3
    assert torch.equal(ids[36:][~masked], original[~masked])
    assert torch.equal(labels[36:] != -100, masked)
    assert torch.equal(labels[36:][masked], original[masked])


@pytest.mark.parametrize(
    ("scope", "low", "high", "count"),
    [("response", 5, 35, 15), ("prompt", 1, 5, 2), ("all", 1, 35, 17)],
)
def test_scope(scope, low, high, count, store, tokenizer):
    rows = SampleRows(store, 200, masked=True, min_response=12, end=END)
    item = {**rows[5], "row": 5, "epoch": 0}
    batch = MaskedAnswerCollator(tokenizer, 0.5, scope=scope, multiple=1)([item])
    places = torch.nonzero(batch["input_ids"][0] == tokenizer.mask_token_id).flatten()
    assert len(places) == count
    assert low <= places.min()
    assert places.max() < high


def test_answers_that_end_without_an_end(tmp_path, tokenizer):
    store = write_store(
        [([Encoded(list(range(10, 40)), True, 5)], 0)], tmp_path / "s", vocabulary=128
    )
    rows = SampleRows(store, 100, masked=True, min_response=5, end=None)
    item = {**rows[1], "row": 1, "epoch": 0}
    batch = MaskedAnswerCollator(tokenizer, 0.99, multiple=1)([item])
    assert (batch["labels"] != -100).sum() == 24
