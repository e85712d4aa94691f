from __future__ import annotations

import textwrap

import pytest

from compress.reports.headers import header_line, model_line, plan_line
from compress.reports.receipt import Receipt
from compress.reports.records import Cost
from compress.reports.tables import auto_class, cost_line, plan_table, receipt_table

BEFORE = {
    "parameters": 1_240_000_000,
    "nonzero": 1_240_000_000,
    "bytes": 2_470_000_000,
    "perplexity": {"data/wiki.txt": {"value": 9.76, "stderr": 0.05, "tokens": 1000}},
    "tasks": {"arc_easy": {"acc": 0.612, "n": 2000}, "boolq": {"acc": 0.64, "n": 3000}},
    "speed": {"decode_tokens_per_s": 21.3, "peak_bytes": 3_100_000_000},
}
AFTER = {
    "parameters": 1_240_000_000,
    "nonzero": 660_000_000,
    "bytes": 2_471_000_000,
    "perplexity": {"data/wiki.txt": {"value": 13.02, "stderr": 0.11, "tokens": 1000}},
    "tasks": {"arc_easy": {"acc": 0.571, "n": 2000}, "boolq": {"acc": 0.633, "n": 3000}},
    "speed": {"decode_tokens_per_s": 21.1, "peak_bytes": 3_100_000_000},
}
PRUNED = {
    "schema": 1,
    "command": "alpha-prune",
    "status": "ok",
    "model": {"source": "./llama-1b", "architecture": "LlamaForCausalLM"},
    "before": BEFORE,
    "after": AFTER,
    "comparison": {
        "tasks": {
            "arc_easy": {"difference": -0.041, "ci95": [-0.062, -0.020], "p": 0.0002},
            "boolq": {"difference": -0.007, "ci95": [-0.024, 0.010], "p": 0.41},
        }
    },
    "cost": {
        "seconds": {"measure": 9.2, "apply": 141.0, "save": 4.1, "evaluate": 33.0},
        "passes": 2.26,
        "peak_bytes": 2_100_000_000,
    },
    "notes": ["zeros are stored dense: no engine here skips them, so expect no gain in speed"],
}
SCREEN = """\
                       before     after   change
perplexity wiki.txt      9.76     13.02   +33 %    (± 0.11)
arc_easy, acc           0.612     0.571   −0.041   (95 %: −0.062 … −0.020)
boolq, acc              0.640     0.633   −0.007   not distinguishable (p 0.41)
non-zero weights       1.24 B    0.66 B   −47 %
bytes on disk         2.47 GB   2.47 GB   same: zeros are stored dense
decode, tokens/s         21.3      21.1   same: no engine here skips zeros
peak memory           3.10 GB   3.10 GB   same

done in 3:07  (measure 0:09, apply 2:21, save 0:04, evaluate 0:33; 2.3 passes;
  peak 2.10 GB)
./llama-1b-s60   loads with AutoModelForCausalLM.from_pretrained

note: zeros are stored dense: no engine here skips them, so expect no gain in
      speed"""


def shown(data: dict, **options) -> str:
    return receipt_table(Receipt.from_dict(data), width=80, terminal=False, **options)


def test_the_screen_of_a_pruned_model():
    assert shown(PRUNED, output="./llama-1b-s60") == SCREEN


def test_a_terminal_sees_the_same_text_with_a_bold_header(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    receipt = Receipt.from_dict(PRUNED)
    drawn = receipt_table(receipt, output="./llama-1b-s60", width=80, terminal=True)
    first, rest = drawn.split("\n", 1)
    assert first == "\x1b[1m" + SCREEN.split("\n", 1)[0] + "\x1b[0m"
    assert rest == SCREEN.split("\n", 1)[1]


def test_only_what_was_measured_has_a_line():
    data = {"command": "train-spam", "after": {"perplexity": {"c4": {"value": 31.254}}}}
    assert shown(data) == "                value\nperplexity c4   31.25"
    assert shown({"command": "x"}) == ""
    data = {"command": "x", "before": {"bytes": 10}, "after": {"nonzero": 5}}
    assert shown(data) == textwrap.dedent("""\
                           before   after   change
        non-zero weights                5
        bytes on disk        10 B""")


def test_a_smaller_file_is_a_gain_not_a_sameness():
    data = {
        "command": "x",
        "before": {"nonzero": 100, "parameters": 100, "bytes": 2000},
        "after": {"nonzero": 40, "parameters": 100, "bytes": 900},
    }
    assert "bytes on disk      2.00 kB   0.90 kB   −55 %" in shown(data)
    assert "stored dense" not in shown(data)


def test_fewer_parameters_are_shown_and_speed_is_not_excused():
    speed = {"decode_tokens_per_s": 20.0}
    data = {
        "command": "lowrank-svd",
        "before": {"parameters": 1000, "nonzero": 1000, "speed": speed},
        "after": {"parameters": 800, "nonzero": 800, "speed": {"decode_tokens_per_s": 20.2}},
    }
    assert shown(data) == textwrap.dedent("""\
                           before    after   change
        parameters         1.00 K   0.80 K   −20 %
        non-zero weights   1.00 K   0.80 K   −20 %
        decode, tokens/s     20.0     20.2   same""")


def test_a_perplexity_difference_within_its_noise_says_so():
    compared = {"perplexity": {"data/wiki.txt": {"difference": 0.01, "ci95": [-0.2, 0.2]}}}
    data = {**PRUNED, "comparison": compared}
    assert "perplexity wiki.txt      9.76     13.02   +33 %   not distinguishable\n" in shown(data)
    compared["perplexity"]["data/wiki.txt"] |= {"ci95": [3.05, 3.47], "p": 1e-9}
    assert "+33 %   (95 %: +3.05 … +3.47)\n" in shown(data)


def test_vision_and_speech_measures_have_lines():
    data = {
        "command": "pass-prune",
        "before": {
            "accuracy": {"d": {"top1": 0.9, "top5": 0.99, "stderr": 0.01, "n": 900}},
            "macs": 4_100_000_000,
            "latency": {"batch_1_s": 0.0123},
        },
        "after": {
            "accuracy": {"d": {"top1": 0.88, "top5": 0.99, "stderr": 0.011, "n": 900}},
            "macs": 2_050_000_000,
            "latency": {"batch_1_s": 0.0082},
            "wer": {"s": {"value": 0.121, "stderr": 0.004, "words": 1000}},
        },
    }
    assert shown(data) == textwrap.dedent("""\
                            before    after   change
        accuracy top1 d      0.900    0.880   −0.020   (± 0.011)
        accuracy top5 d      0.990    0.990   same
        wer s                         0.121            (± 0.004)
        multiply-adds       4.10 B   2.05 B   −50 %
        latency, batch 1   12.3 ms   8.2 ms   −33 %""")


def test_nothing_is_wider_than_80_columns_and_nothing_is_lost():
    long = "/very/long/" + "directory-" * 9 + "/text.txt"
    twin = "/other/long/" + "directory-" * 9 + "/text.txt"
    scores = {long: {"value": 9.0, "stderr": 0.1}, twin: {"value": 8.0}}
    data = {**PRUNED, "before": {"perplexity": scores}, "after": {"perplexity": scores}}
    text = shown(data, output="out")
    assert max(map(len, text.splitlines())) <= 80
    assert "".join(line[:40].strip() for line in text.splitlines()).count("directory-") >= 2
    assert "9.00" in text


@pytest.mark.parametrize(
    ("cost", "line"),
    [
        (Cost(), ""),
        (Cost({"apply": 3.25, "save": 0.01}), "done in 3.3 s  (apply 3.2 s)"),
        (Cost({"apply": 0.001}), "done in 0.0 s"),
        (Cost({}, 1_500_000, 2.0), "2.0 passes; peak 1.50 MB"),
        (Cost({"apply": 61, "load": 0.2}), "done in 1:01  (apply 1:01)"),
    ],
)
def test_cost_lines(cost, line):
    assert cost_line(cost) == line


@pytest.mark.parametrize(
    ("architecture", "auto"),
    [
        ("LlamaForCausalLM", "AutoModelForCausalLM"),
        ("GPT2LMHeadModel", "AutoModelForCausalLM"),
        ("BertForMaskedLM", "AutoModelForMaskedLM"),
        ("T5ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
        ("BertModel", "AutoModel"),
        (None, "AutoModel"),
    ],
)
def test_auto_classes_exist(architecture, auto):
    import transformers

    assert auto_class(architecture) == auto
    assert hasattr(transformers, auto)


def plan_rows(spread: int = 0) -> list[dict]:
    return [
        {
            "module": f"model.layers.{b}.{name}",
            "kind": "zeros",
            "block": f"model.layers.{b}",
            "size": 4000,
            "zeros": 2000 + 400 * b + spread * i,
            "sparsity": 0.5,
            "alpha_peak": 2.25 + b + i * 0.5,
        }
        for b in range(2)
        for i, name in enumerate(("q", "k"))
    ]


def test_the_plan_by_block():
    assert plan_table(plan_rows(), width=80, terminal=False) == textwrap.dedent("""\
        block             weights   sparsity   alpha_peak
        model.layers.0     8.00 K      0.500        2.500
        model.layers.1     8.00 K      0.600        3.500
        all, 4 matrices    16.0 K      0.550""")


def test_the_plan_by_matrix_shows_the_range_and_a_terminal_bars(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert plan_table(plan_rows(400), width=80, terminal=True) == textwrap.dedent("""\
        block             weights   sparsity       by matrix   alpha_peak
        model.layers.0     8.00 K      0.550   0.500 … 0.600        2.500   ██████
        model.layers.1     8.00 K      0.650   0.600 … 0.700        3.500   ██████
        all, 4 matrices    16.0 K      0.600""")


def test_a_plan_of_another_kind_lists_its_modules():
    rows = [
        {"module": "m.q", "kind": "lowrank", "rank": 96, "scores": [1, 2]},
        {"module": "m.kv", "kind": "linear", "out": 5},
    ]
    assert plan_table(rows, width=80, terminal=False) == textwrap.dedent("""\
        module   kind      rank   out
        m.q      lowrank     96
        m.kv     linear             5""")
    assert plan_table([]) == "the plan changes nothing"


def test_the_header_of_a_run():
    model = model_line("./llama-1b", "llama", 16, 1_240_000_000, "bfloat16")
    assert model == "model     ./llama-1b   llama, 16 blocks, 1.24 B parameters, bfloat16"
    data = header_line("data", "c4, 128 × 2048 tokens, seed 0", "evaluation wiki.txt, 141 windows")
    assert data == "data      c4, 128 × 2048 tokens, seed 0   evaluation wiki.txt, 141 windows"
    plan = plan_line("wanda", "alpha_peak by block", plan_rows(), "--plan-out saves it")
    assert plan == "plan      wanda, alpha_peak by block, 0.50 to 0.60   (--plan-out saves it)"
    assert plan_line("wanda", "uniform", plan_rows()[:2]).endswith("uniform, 0.50 everywhere")
    folded = header_line("data", *["word " * 12] * 2, width=80).splitlines()
    assert max(map(len, folded)) <= 80
    assert folded[1].startswith(" " * 10 + "word")
