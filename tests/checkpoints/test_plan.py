"""A plan survives its file, and is refused where it doesn't belong."""

import json

import pytest

from compress.checkpoints.plan import Plan, read_plan
from compress.errors import RequestError

ROWS = [{"module": "a.b", "kind": "zeros", "zeros": 3}, {"module": "a.c", "kind": "zeros"}]
PLAN = Plan("alpha-prune", "sha256:1", ROWS, {"sparsity": 0.5})


def read(path, **changed):
    given = {"command": "alpha-prune", "model_digest": "sha256:1", "modules": ["a.b", "a.c"]}
    return read_plan(path, **{**given, **changed})


def test_round_trip(tmp_path):
    PLAN.write(tmp_path / "p.json")
    again = read(tmp_path / "p.json")
    assert again == PLAN
    assert again.digest() == PLAN.digest()
    assert json.loads((tmp_path / "p.json").read_text())["rows"] == ROWS


def test_a_row_is_a_line(tmp_path):
    lines = PLAN.text().splitlines()
    assert sum('"module"' in line for line in lines) == 2


def test_the_digest_sees_rows_and_model_but_not_remarks():
    other = Plan("alpha-prune", "sha256:1", ROWS, {"sparsity": 0.6})
    assert other.digest() == PLAN.digest()
    assert Plan("alpha-prune", "sha256:2", ROWS).digest() != PLAN.digest()
    assert Plan("alpha-prune", "sha256:1", ROWS[:1]).digest() != PLAN.digest()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "can't be read"),
        ("{", "isn't JSON"),
        ("[]", "isn't a plan"),
        (json.dumps({**PLAN.as_dict(), "schema": 9}), "schema 9"),
        (json.dumps({**PLAN.as_dict(), "command": "other"}), "plan of `other`"),
        (json.dumps({**PLAN.as_dict(), "model": {"digest": "sha256:2"}}), "another model"),
        (json.dumps({**PLAN.as_dict(), "rows": [{"module": "a.x", "kind": "zeros"}]}), "`a.x`"),
        (json.dumps({**PLAN.as_dict(), "rows": [ROWS[0], ROWS[0]]}), "two rows"),
        (json.dumps({**PLAN.as_dict(), "rows": [{"kind": "zeros"}]}), "row 1"),
    ],
)
def test_a_wrong_plan_is_refused(text, words, tmp_path):
    if text is not None:
        (tmp_path / "p.json").write_text(text)
    with pytest.raises(RequestError) as caught:
        read(tmp_path / "p.json")
    assert words in caught.value.message


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RequestError, match="can't be written"):
        PLAN.write(tmp_path / "no" / "p.json")
