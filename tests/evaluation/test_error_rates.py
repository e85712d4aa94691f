"""Word and character error rates: jiwer's own examples, the definition, standard errors, pairs."""

import math
import random

import pytest

from compress.errors import RequestError
from compress.evaluation.error_rates import compare_rates, error_rate


@pytest.mark.parametrize(
    ("said", "heard", "wer", "cer"),
    [  # from jiwer's documentation and its test suite
        (["hello world"], ["hello duck"], 0.5, 5 / 11),
        (["hello world", "hi"], ["hello duck", "hi"], 1 / 3, 5 / 13),
        (["i can spell", "i hope"], ["i kan cpell", "i hop"], 3 / 5, 0.1764705882352941),
        (["This is a test"], ["This is a test"], 0.0, 0.0),
        (["X"], ["X X Y Y"], 3.0, 6.0),
        (["X Y Z"], [""], 1.0, 1.0),
        (["short one here"], ["shoe order one"], 1.0, None),
    ],
)
def test_jiwer_s_examples(said, heard, wer, cer):
    import jiwer

    assert error_rate(said, heard, "wer").value == pytest.approx(wer)
    assert error_rate(said, heard, "wer").value == pytest.approx(jiwer.wer(said, heard))
    assert error_rate(said, heard, "cer").value == pytest.approx(jiwer.cer(said, heard))
    if cer is not None:
        assert error_rate(said, heard, "cer").value == pytest.approx(cer)


def distance(a, b):
    """Levenshtein's, by the definition."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def test_counts_are_edit_distances():
    draw = random.Random(0)
    said = [" ".join(draw.choice("abc") for _ in range(draw.randint(1, 6))) for _ in range(40)]
    heard = [" ".join(draw.choice("abc") for _ in range(draw.randint(0, 6))) for _ in range(40)]
    found = error_rate(said, heard, "wer")
    assert found.errors == [distance(a.split(), b.split()) for a, b in zip(said, heard)]
    assert found.counts == [len(a.split()) for a in said]
    assert found.words == sum(found.counts)
    assert error_rate(said, heard, "cer").errors == [distance(a, b) for a, b in zip(said, heard)]


def test_the_standard_error_is_that_of_a_mean_where_lengths_are_equal():
    said, heard = ["a b"] * 5, ["a b", "a c", "c c", "a b", "a b"]
    found = error_rate(said, heard, "wer")
    rates = [0.0, 0.5, 1.0, 0.0, 0.0]
    mean = sum(rates) / 5
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rates) / 4)
    assert found.stderr == pytest.approx(deviation / math.sqrt(5))
    assert error_rate(["a"], ["a"], "wer").stderr is None
    assert found.as_receipt() == {
        "value": pytest.approx(0.3),
        "stderr": pytest.approx(found.stderr),
        "words": 10,
        "utterances": 5,
    }


def test_pairs_are_compared_where_the_references_are_the_same():
    said = ["a b", "a b c", "a", "b c"]
    first = error_rate(said, ["a b", "a c c", "b", "b c"], "wer")
    second = error_rate(said, ["a b", "a b c", "a", "b c"], "wer")
    found = compare_rates(first, second)
    assert found.difference == pytest.approx(-2 / 8)
    assert found.ci95[0] < found.difference < found.ci95[1]
    assert compare_rates(first, first).p == 1.0
    assert compare_rates(first, error_rate(["x"] * 4, said, "wer")) is None


def test_an_empty_reference_and_a_lost_hypothesis_are_refused():
    with pytest.raises(RequestError, match="reference 1 is empty"):
        error_rate(["a", " "], ["a", "b"], "wer")
    with pytest.raises(RequestError, match="1 hypotheses"):
        error_rate(["a", "b"], ["a"], "wer")
