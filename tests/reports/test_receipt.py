from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.errors import RequestError, RunError
from compress.reports import receipt as module
from compress.reports.receipt import (
    Receipt,
    command_line,
    device_info,
    masked,
    read_items,
    versions,
    write_items,
)
from compress.reports.records import Measures, Perplexity, Speed, TaskScore
from compress.reports.validate import check

DIGEST = "sha256:" + "0" * 64


def contract_example() -> dict:
    """CONTRACT's example with numbers that could be true."""
    measures = {
        "parameters": 1000,
        "nonzero": 1000,
        "bytes": 2100,
        "perplexity": {"wiki.txt": {"value": 9.76, "stderr": 0.05, "tokens": 512}},
        "tasks": {"boolq": {"acc": 0.64, "stderr": 0.01, "n": 200}},
        "speed": {"prefill_tokens_per_s": 90.0, "decode_tokens_per_s": 21.3, "peak_bytes": 3100},
    }
    return {
        "schema": 1,
        "command": "alpha-prune",
        "argv": ["compress", "alpha-prune", "m", "-o", "out"],
        "status": "ok",
        "seed": 0,
        "versions": {"compress": "0.1", "torch": "2.13", "transformers": "5.23"},
        "device": {"name": "cpu", "count": 1},
        "model": {"source": "m", "architecture": "LlamaForCausalLM", "digest": DIGEST},
        "plan": {"file": "plan.json", "digest": DIGEST, "rows": 40},
        "before": measures,
        "after": {**measures, "nonzero": 400, "accuracy": {"x": {"top1": 0.5, "n": 4}}},
        "comparison": {"tasks": {"boolq": {"difference": 0.0, "ci95": [-0.1, 0.1], "p": 1.0}}},
        "cost": {"seconds": {"load": 0.1, "apply": 2.0}, "peak_bytes": 5000, "passes": 2.0},
        "training": {"steps": 3},
    }


def test_the_contract_form_survives_a_round_trip(tmp_path: Path):
    data = contract_example()
    assert check(data) == []
    receipt = Receipt.from_dict(data)
    assert receipt.as_dict() == data
    receipt.write(tmp_path)
    assert Receipt.read(tmp_path) == receipt
    assert Receipt.read(str(tmp_path / "receipt.json")) == receipt
    assert receipt.before.perplexity["wiki.txt"].stderr == 0.05
    assert receipt.after.extra == {"accuracy": {"x": {"top1": 0.5, "n": 4}}}
    assert receipt.extra == {"training": {"steps": 3}}


def test_a_study_keeps_its_rows_of_comparison():
    rows = [{"calib": "a", "reference": "b", "difference": 0.1}]
    data = {**contract_example(), "comparison": rows, "cells": [{"calib": "a", "seed": 0}]}
    assert Receipt.from_dict(data).as_dict() == data


def test_build_fills_in_what_all_commands_share_and_leaves_out_what_was_not_measured():
    built = Receipt.build(
        "alpha-prune",
        seed=3,
        argv=["compress", "alpha-prune", "m", "--token", "hf_secret"],
        before=Measures(parameters=10, perplexity={"w": Perplexity(np.float32(2.5), None, 7)}),
        after={"parameters": np.int64(10), "nonzero": torch.tensor(4), "tasks": None},
        settings={"seqlen": None, "out": Path("a/b"), "skip": ()},
        comparison={},
        notes=("zeros are stored dense: no engine here skips them",),
        cost={"seconds": {"apply": 1.5}},
    ).as_dict()
    assert check(built) == []
    assert built["before"] == {
        "parameters": 10,
        "perplexity": {"w": {"value": 2.5, "tokens": 7}},
    }
    assert built["after"] == {"parameters": 10, "nonzero": 4}
    assert built["settings"] == {"out": "a/b", "skip": []}
    assert built["notes"] == ["zeros are stored dense: no engine here skips them"]
    assert "comparison" not in built
    assert "plan" not in built
    assert built["device"]["count"] == 1
    assert built["device"]["name"]
    assert "hf_secret" not in json.dumps(built)
    assert json.loads(json.dumps(built)) == built


def test_what_evaluation_measures_is_taken_by_its_receipt_form():
    class Measured:
        def as_receipt(self) -> dict:
            return {"tasks": {"t": {"acc": 0.5, "stderr": 0.1, "n": 25}}}

    built = Receipt.build("eval", seed=0, argv=[], after=Measured())
    assert built.after == Measures(tasks={"t": TaskScore(0.5, 0.1, 25)})


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), np.float32("nan"), torch.tensor(-np.inf)]
)
def test_a_number_that_is_not_finite_is_refused_by_name(bad, tmp_path: Path):
    after = {"perplexity": {"w": {"value": bad}}}
    with pytest.raises(RunError, match=r"receipt\.after\.perplexity\.w\.value"):
        Receipt.build("x", seed=0, after=after)
    with pytest.raises(RunError):
        Receipt("x", after=Measures(speed=Speed(decode_tokens_per_s=bad))).write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_sorted_stable_and_ends_with_a_newline(tmp_path: Path):
    data = contract_example()
    path = Receipt.from_dict(data).write(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    keys = list(json.loads(text))
    assert keys == sorted(keys)
    Receipt.from_dict(dict(reversed(data.items()))).write(tmp_path)
    assert path.read_text(encoding="utf-8") == text


def test_a_failed_write_leaves_the_old_receipt_and_no_other_file(tmp_path: Path, monkeypatch):
    receipt = Receipt.from_dict(contract_example())
    old = receipt.write(tmp_path).read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Receipt("other").write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["receipt.json"]
    assert (tmp_path / "receipt.json").read_bytes() == old


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "has no receipt.json"),
        ('{"schema": 1, "command": "alpha', "isn't complete JSON"),
        ("", "isn't complete JSON"),
        ("[1]", "no `schema`"),
        ('{"schema": true}', "no `schema`"),
        ('{"schema": 2, "command": "x"}', "newer compress: schema 2"),
        ('{"schema": 1}', "no `command`"),
        ('{"schema": 1, "command": "x", "seed": "0"}', "`receipt.seed` is '0'"),
        ('{"schema": 1, "command": "x", "after": {"tasks": {"t": {"n": 3}}}}', "lacks 'acc'"),
        ('{"schema": 1, "command": "x", "after": {"bytes": 1.5}}', "`receipt.after.bytes` is 1.5"),
        ('{"schema": 1, "command": "x", "cost": {"seconds": {"a": true}}}', "seconds.a` is True"),
        ('{"schema": 1, "command": "x", "cost": []}', "`receipt.cost` is [], not an object"),
    ],
)
def test_bad_receipts_are_one_line_that_names_the_file(tmp_path: Path, text, says):
    if text is not None:
        (tmp_path / "receipt.json").write_text(text)
    with pytest.raises(RequestError) as caught:
        Receipt.read(tmp_path)
    assert says in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_binary_file_and_a_missing_one(tmp_path: Path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RequestError, match="isn't text"):
        Receipt.read(tmp_path / "x.json")
    with pytest.raises(RequestError, match="there is no"):
        Receipt.read(tmp_path / "none.json")


def test_an_older_schema_and_unknown_keys_are_read(tmp_path: Path):
    (tmp_path / "receipt.json").write_text('{"schema": 0, "command": "x", "later": 5}')
    assert Receipt.read(tmp_path).extra == {"later": 5}


def test_secrets_are_masked_in_both_spellings():
    given = ["compress", "eval", "--token", "a", "--token=b", "--tokens", "c"]
    assert masked(given) == ["compress", "eval", "--token", "***", "--token=***", "--tokens", "c"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["/x/bin/compress", "eval", "m"], ["compress", "eval", "m"]),
        (["/x/compress/__main__.py", "eval"], ["compress", "eval"]),
        (["/x/bin/pytest", "-q"], []),
        ([""], []),
        ([], []),
    ],
)
def test_only_our_own_command_line_is_recorded(monkeypatch, argv, line):
    monkeypatch.setattr(module.sys, "argv", argv)
    assert command_line() == line


def test_versions_and_device_name_this_machine():
    seen = versions()
    assert {"compress", "python", "torch", "transformers"} <= set(seen)
    assert seen["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert device_info("cpu").extra["threads"] == torch.get_num_threads()
    assert device_info("meta").name == "meta"


def test_items_lie_beside_the_receipt(tmp_path: Path):
    assert read_items(tmp_path) == {}
    write_items(tmp_path, {"tasks": {"t": {"0": torch.tensor(1), "1": 0.0}}})
    assert read_items(tmp_path)["tasks"] == {"t": {"0": 1, "1": 0.0}}
    assert read_items(tmp_path / "receipt.json")["tasks"]["t"]["0"] == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": None}, "`seed` is null"),
        ({"after": {}}, "`after` is empty"),
        ({"after": {"bytes": 0}}, "not positive"),
        ({"after": {"parameters": 3, "nonzero": 4}}, "4 of 3"),
        ({"after": {"perplexity": {"w": {"value": 0.0}}}}, "below 1"),
        ({"after": {"tasks": {"t": {"acc": 1.2}}}}, "outside [0, 1]"),
        ({"model": {"source": "m", "digest": "md5:1"}}, "not sha256"),
        ({"schema": 3}, "`schema` is 3"),
        ({"versions": {"torch": "1"}}, "`versions.compress` is missing"),
        (
            {"comparison": {"tasks": {"boolq": {"difference": 0.2, "ci95": [-0.1, 0.1]}}}},
            "outside its interval",
        ),
        (
            {"comparison": {"tasks": {"arc": {"difference": 0.0, "p": 0.5}}}},
            "compares what `before` doesn't hold",
        ),
    ],
)
def test_check_finds_each_broken_promise(change, says):
    faults = check({**contract_example(), **change})
    assert any(says in fault for fault in faults), faults


def test_check_finds_missing_keys():
    data = contract_example()
    del data["argv"]
    assert check(data) == ["`argv` is missing"]
