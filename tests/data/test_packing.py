"""Packing: exact shapes, no padding, seeds, every token at most once, leakage, short text."""

from __future__ import annotations

import json

import pytest
import torch
from number_texts import Words, numbers

from compress.data import calibration_batches, prepare_calibration
from compress.data.leakage import RUN, HeldOut
from compress.errors import RequestError


def _windows(documents, tokenizer=None, **options):
    batches, report = calibration_batches(documents, tokenizer or Words(), **options)
    return torch.cat([batch["input_ids"] for batch in batches]), report


SHORT = [numbers(100 * (i + 1), 5 + i % 7) for i in range(200)]
LONG = [numbers(10_000, 3000)]


@pytest.mark.parametrize("documents", [SHORT, LONG, SHORT + LONG], ids=["short", "long", "both"])
def test_windows_are_full_and_no_token_is_drawn_twice(documents):
    windows, report = _windows(documents, samples=20, seqlen=32)
    assert windows.shape == (20, 32)
    assert windows.dtype == torch.int64
    real = windows[windows != 1]
    assert len(real.unique()) == len(real)
    assert (report.windows, report.seqlen, report.tokens) == (20, 32, 640)


def test_short_documents_stay_whole_but_the_last_of_a_window():
    windows, _ = _windows(SHORT, samples=10, seqlen=40)
    lengths = {100 * (i + 1): 5 + i % 7 for i in range(200)}
    for window in windows.tolist():
        parts = [[int(n) for n in part.split()] for part in " ".join(map(str, window)).split(" 1 ")]
        for part in parts[:-1]:
            assert len(part) == lengths[part[0]]
        assert all(part[0] % 100 == 0 for part in parts if part)


def test_a_long_document_is_cut_at_a_random_offset_into_runs():
    starts = set()
    for seed in range(40):
        windows, _ = _windows([numbers(10_000, 70)], samples=2, seqlen=32, seed=seed)
        assert (windows.diff(dim=1) == 1).all()
        starts.add(int(windows.min()) - 10_000)
    assert starts == set(range(7))  # 70 = 2 * 32 + 6: the first and the last offset both occur


def test_many_long_documents_are_all_used_before_any_is_used_twice():
    documents = [numbers(10_000 * (i + 1), 500) for i in range(10)]
    windows, _ = _windows(documents, samples=10, seqlen=32)
    assert sorted((windows[:, 0] // 10_000).tolist()) == list(range(1, 11))


@pytest.mark.parametrize("documents", [SHORT, LONG, SHORT + LONG], ids=["short", "long", "both"])
def test_fewer_windows_are_the_first_of_more(documents):
    many, _ = _windows(documents, samples=16, seqlen=32)
    few, _ = _windows(documents, samples=8, seqlen=32)
    assert torch.equal(many[:8], few)


def test_seeds_differ_and_repeat():
    first, report = _windows(SHORT, samples=8, seqlen=32, seed=0)
    again, same = _windows(SHORT, samples=8, seqlen=32, seed=0)
    other, differs = _windows(SHORT, samples=8, seqlen=32, seed=1)
    assert torch.equal(first, again)
    assert report.digest == same.digest
    assert not torch.equal(first, other)
    assert report.digest != differs.digest


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_the_batch_size_changes_no_window(batch_size):
    reference, report = _windows(SHORT, samples=8, seqlen=32)
    batches, other = calibration_batches(
        SHORT, Words(), samples=8, seqlen=32, batch_size=batch_size
    )
    assert torch.equal(torch.cat([b["input_ids"] for b in batches]), reference)
    assert max(len(b["input_ids"]) for b in batches) == min(batch_size, 8)
    assert other == report


def test_position_0_is_the_beginning_token_where_the_tokenizer_adds_one():
    windows, _ = _windows(SHORT + LONG, Words(bos=0), samples=20, seqlen=32)
    assert windows.shape == (20, 32)
    assert (windows[:, 0] == 0).all()
    assert (windows[:, 1:] != 0).all()
    without, _ = _windows(SHORT + LONG, Words(), samples=20, seqlen=32)
    assert (without != 0).all()


def test_without_an_end_token_documents_follow_a_blank_line():
    class Lines(Words):
        def __call__(self, text, **options):
            if text == "\n\n":
                return {"input_ids": [2]}
            return super().__call__(text, **options)

    windows, _ = _windows(SHORT, Lines(eos=None), samples=4, seqlen=40)
    assert (windows == 2).any()
    assert (windows != 1).all()


def test_what_was_cut_off_is_used_when_nothing_else_is_left():
    # 12 documents of 20 tokens in windows of 32: 12 * 20 + separators = 7 windows, not 6.
    documents = [numbers(100 * (i + 1), 20) for i in range(12)]
    windows, _ = _windows(documents, samples=7, seqlen=32)
    real = windows[windows != 1]
    assert len(real.unique()) == len(real)


def test_the_ends_of_long_documents_are_used_when_nothing_else_is_left():
    # Two documents of 60 tokens give a window of 32 each; their ends, 2 * 28 tokens, a third.
    windows, _ = _windows([numbers(100, 60), numbers(200, 60)], samples=3, seqlen=32)
    real = windows[windows != 1]
    assert len(real.unique()) == len(real)


# ---- faults


def test_too_short_a_text_says_tokens_there_and_needed():
    with pytest.raises(RequestError) as error:
        calibration_batches([numbers(0, 100)], Words(), samples=8, seqlen=32)
    message = error.value.message
    assert "too short" in message
    assert "100 tokens" in message
    assert "256 tokens needed" in message
    assert "--samples 3" in error.value.hint
    assert error.value.code == 2


@pytest.mark.parametrize("documents", [[], ["", "  \n"]])
def test_no_text_at_all(documents):
    with pytest.raises(RequestError, match="0 tokens in 0 documents"):
        calibration_batches(documents, Words(), samples=1, seqlen=8)


@pytest.mark.parametrize("option", [{"samples": 0}, {"seqlen": 1}, {"batch_size": 0}])
def test_sizes_out_of_range(option):
    with pytest.raises(RequestError, match=">="):
        calibration_batches(SHORT, Words(), **{"samples": 2, "seqlen": 8, **option})


# ---- leakage


def test_documents_of_the_evaluation_are_dropped_whatever_their_white_space():
    held = [SHORT[3], SHORT[50].replace(" ", "\n"), "never seen"]
    windows, report = _windows(SHORT, samples=20, seqlen=32, held_out=held)
    assert report.dropped_documents == 2
    assert report.documents == len(SHORT) - 2
    assert not (windows // 100 == 4).any()
    assert not (windows // 100 == 51).any()


def test_passages_of_the_evaluation_are_found_wherever_they_start():
    # The evaluation text is an excerpt of the calibration text: no document is equal.
    text = numbers(10_000, 3000)
    excerpt = numbers(11_000, 500)
    windows, report = _windows([text], samples=15, seqlen=128, held_out=[excerpt])
    assert report.dropped_windows >= 3
    shared = ((windows >= 11_000) & (windows < 11_500)).sum(1)
    assert (shared < RUN).all()


def test_unrelated_text_drops_nothing():
    reference, _ = _windows(SHORT, samples=20, seqlen=32)
    windows, report = _windows(SHORT, samples=20, seqlen=32, held_out=[numbers(50_000, 5000)])
    assert torch.equal(windows, reference)
    assert (report.dropped_documents, report.dropped_windows) == (0, 0)


def test_run_hashes_agree_with_a_plain_search():
    generator = torch.Generator().manual_seed(0)
    held = torch.randint(0, 3, (400,), generator=generator)
    finder = HeldOut([" ".join(map(str, held.tolist()))], Words())
    runs = {tuple(held[i : i + 9].tolist()) for i in range(392)}
    for trial in range(300):
        window = torch.randint(0, 3, (10,), generator=torch.Generator().manual_seed(trial + 1))
        slow = any(tuple(window[i : i + 9].tolist()) in runs for i in range(2))
        assert finder.shares_a_run(window.numpy()) == slow


def test_everything_held_out_says_so():
    with pytest.raises(RequestError, match="in the evaluation text") as error:
        calibration_batches(SHORT, Words(), samples=2, seqlen=16, held_out=SHORT)
    assert "200 documents" in error.value.message


def test_the_same_file_for_both_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t, "other": t + " 7"}) + "\n" for t in SHORT))
    options = {"samples": 2, "seqlen": 16}
    with pytest.raises(RequestError, match="both the calibration and the evaluation") as error:
        prepare_calibration("a.jsonl", Words(), held_out=[str(path)], **options)
    assert "--calib" in error.value.hint
    _, report = prepare_calibration("a.jsonl", Words(), held_out=["a.jsonl:other"], **options)
    assert report.windows == 2


def test_two_splits_of_a_directory_are_two_texts(tmp_path):
    for split, texts in (("train", SHORT[:100]), ("test", SHORT[90:])):
        rows = [json.dumps({"text": text}) + "\n" for text in texts]
        (tmp_path / f"{split}.jsonl").write_text("".join(rows))
    spec = str(tmp_path)
    _, report = prepare_calibration(spec, Words(), samples=2, seqlen=16, held_out=[spec])
    assert report.dropped_documents == 10
