"""What is run, in which order, what is known, and what is left when something fails."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

import compress
from compress.errors import RequestError, RunError

CHAIN = """\
vars: {model: m, sparsity: 0.5}
steps:
  prune:
    run: alpha-prune
    model: ${model}
    method: magnitude
    sparsity: ${sparsity}
  pack:
    run: export
    model: ${steps.prune.output}
    to: bitmask
  check:
    run: eval
    models: ["${steps.prune.output}", "${steps.pack.output}"]
    limit: ${steps.prune.receipt.after.bytes}
"""
GRID = """\
matrix:
  arm: [{name: flat, allocation: uniform}, {name: bent, allocation: alpha, epsilon: 0.1}]
  sparsity: [0.5, 0.6, 0.7]
  exclude: [{arm: flat, sparsity: 0.7}]
seeds: 2
steps:
  train: {run: train-spam, model: cfg, data: demo, steps: 3}
  prune:
    run: alpha-prune
    model: ${steps.train.output}
    method: magnitude
    with: ${arm}
    sparsity: ${sparsity}
  all: {run: report, paths: "${all.prune.output}", csv: table.csv}
"""


def places(result):
    return [step["place"] for step in result.summary["steps"]]


def test_a_chain_hands_outputs_and_receipts_on(recipe, stub, tmp_path):
    result = compress.run(recipe(CHAIN), "out")
    prune, pack, check = stub.ran
    steps = str(tmp_path / "out.partial" / "steps")
    assert prune == ["alpha-prune", "m", "--method=magnitude", "--sparsity=0.5", "-o",
                     f"{steps}/prune", "--json"]  # fmt: skip
    assert pack[1] == f"{steps}/prune"
    assert check[1:3] == [f"{steps}/prune", f"{steps}/pack"]
    assert check[3] == f"--limit={1000 + len(prune)}"  # a value of the receipt
    assert sorted(os.listdir("out")) == ["check", "pack", "prune", "report.md", "run.json"]
    assert places(result) == ["prune", "pack", "check"]
    assert not Path("out.partial").exists()
    receipt = json.loads(Path("out/pack/receipt.json").read_text())
    assert str(tmp_path / "out" / "prune") in receipt["argv"]  # where it lies now


def test_a_second_run_does_only_what_changed(recipe, stub):
    name = recipe(CHAIN)
    compress.run(name, "out")
    assert all(s["cached"] for s in compress.run(name, "out").summary["steps"])
    assert len(stub.ran) == 3
    stub.ran.clear()
    compress.run(recipe(CHAIN.replace("to: bitmask", "to: stock")), "out")
    assert [argv[0] for argv in stub.ran] == ["export", "eval"]
    stub.ran.clear()
    compress.run(name, "out", set={"sparsity": 0.6})
    assert [argv[0] for argv in stub.ran] == ["alpha-prune", "export", "eval"]
    stub.ran.clear()
    compress.run(name, "out", set={"sparsity": 0.6}, no_cache=True)
    assert len(stub.ran) == 3


def test_the_content_of_inputs_counts_and_their_place_does_not(recipe, stub, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights").write_text("one")
    name = recipe(CHAIN)
    compress.run(name, "out")
    os.utime(tmp_path / "m" / "weights")  # touched, not changed
    compress.run(name, "out")
    assert len(stub.ran) == 3
    (tmp_path / "m" / "weights").write_text("two")
    compress.run(name, "out")
    assert len(stub.ran) == 6


def test_a_lost_or_shortened_output_is_made_again(recipe, stub):
    name = recipe(CHAIN)
    compress.run(name, "out")
    (Path("out/prune/model.safetensors")).write_bytes(b"x")
    compress.run(name, "out")
    assert [argv[0] for argv in stub.ran[3:]] == ["alpha-prune"]  # equal inputs, equal results


def test_a_step_is_run_once_for_the_axes_that_it_depends_on(recipe, stub):
    result = compress.run(recipe(GRID), "out")
    names = places(result)
    assert [n for n in names if n.endswith("train")] == ["seed=0/train", "seed=1/train"]
    assert len([n for n in names if n.endswith("prune")]) == 2 * 5
    assert "arm=bent,sparsity=0.7,seed=1/prune" in names
    assert "arm=flat,sparsity=0.7,seed=0/prune" not in names
    seeds = [w for argv in stub.ran for w in argv if w.startswith("--seed=")]
    assert seeds.count("--seed=0") == seeds.count("--seed=1") == 1 + 5
    bent = next(argv for argv in stub.ran if "--epsilon=0.1" in argv)
    assert "--allocation=alpha" in bent
    gathered = stub.ran[-1]
    assert gathered[0] == "report"
    assert len([w for w in gathered if w.endswith("/prune")]) == 10
    assert Path("out/all/table.csv").read_text() == "a,b\n"  # beside the step's receipt


def test_shards_together_are_the_whole(recipe, stub):
    name = recipe(GRID)
    parts = [compress.run(name, f"part{i}", shard=(i, 3)) for i in (1, 2, 3)]
    pruned = [n for part in parts for n in places(part) if n.endswith("prune")]
    assert len(pruned) == len(set(pruned)) == 10
    assert not any("all" in places(part) for part in parts)  # what gathers waits for the whole
    before = len(stub.ran)
    whole = compress.run(name, "out", reuse=["part1", "part2", "part3"])
    assert stub.names()[before:] == [f"report {Path(stub.ran[-1][1]).name}"]
    assert set(pruned) < set(places(whole))


def test_a_failed_step_ends_the_run_and_what_was_finished_is_kept(recipe, stub):
    name = recipe(CHAIN)
    stub.failing = {"export": ("noise\nerror: the disk is full\n\nhint: free some space\n", 3)}
    with pytest.raises(RunError, match="step `pack`: the disk is full") as caught:
        compress.run(name, "out")
    assert "free some space; what was finished (1 steps) is kept" in caught.value.hint
    assert not Path("out").exists()
    assert Path("out.partial/steps/prune/model.safetensors").exists()
    stub.failing = {}
    stub.ran.clear()
    compress.run(name, "out", resume=True)
    assert [argv[0] for argv in stub.ran] == ["export", "eval"]


def test_a_wrong_request_of_a_step_keeps_its_exit_code(recipe, stub):
    stub.failing = {"export": ("error: no such model\n", 2)}
    with pytest.raises(RequestError, match="step `pack`: no such model"):
        compress.run(recipe(CHAIN), "out")


def test_a_failed_run_leaves_the_last_good_one(recipe, stub):
    name = recipe(CHAIN)
    compress.run(name, "out")
    before = Path("out/run.json").read_bytes()
    stub.failing = {"export": ("error: x\n", 3)}
    with pytest.raises(RunError):
        compress.run(name, "out", set={"sparsity": 0.9})
    assert Path("out/run.json").read_bytes() == before
    assert Path("out/prune/model.safetensors").exists()


def test_keep_going_does_what_does_not_depend_on_the_failure(recipe, stub):
    stub.failing = {"--sparsity=0.6": ("error: x\n", 3)}
    with pytest.raises(RunError, match=r"\(4 steps failed\)"):
        compress.run(recipe(GRID), "out", keep_going=True)
    told = json.loads(Path("out.partial/run.json").read_text())
    status = {s["place"]: s["status"] for s in told["steps"]}
    assert told["status"] == "partial"
    assert sum(v == "ok" for v in status.values()) == 2 + 6
    assert status["all"] == "skipped"


def test_without_it_nothing_more_is_begun(recipe, stub):
    stub.failing = {"--sparsity=0.5": ("error: x\n", 3)}
    with pytest.raises(RunError):
        compress.run(recipe(GRID), "out")
    assert len(stub.ran) <= 3


def test_an_interrupted_step_resumes_from_its_own_journal(recipe, stub, tmp_path):
    name = recipe(CHAIN)

    def interrupt(argv):
        if argv[0] == "alpha-prune":
            journal = Path(argv[argv.index("-o") + 1] + ".partial")
            journal.mkdir(parents=True, exist_ok=True)
            (journal / "journal.json").write_text("{}")
            raise KeyboardInterrupt

    stub.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        compress.run(name, "out")
    assert stub.signals  # what runs is told
    stub.before = lambda argv: None
    compress.run(name, "out")
    assert "--resume" in stub.ran[0]
    # Another request than the journal's is begun anew.
    stub.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        compress.run(name, "out", set={"sparsity": 0.8})
    stub.before = lambda argv: None
    stub.ran.clear()
    compress.run(name, "out", set={"sparsity": 0.9})
    assert "--resume" not in stub.ran[0]


def test_a_journal_that_cannot_be_used_is_begun_anew(recipe, stub):
    name = recipe(CHAIN)

    def interrupt(argv):
        journal = Path(argv[argv.index("-o") + 1] + ".partial")
        journal.mkdir(parents=True, exist_ok=True)
        (journal / "journal.json").write_text("{}")
        raise KeyboardInterrupt

    stub.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        compress.run(name, "out")
    stub.before = lambda argv: None
    stub.failing = {"--resume": ("error: can't resume: damaged\n", 2)}
    compress.run(name, "out")
    assert [("--resume" in argv) for argv in stub.ran[:2]] == [True, False]


def test_jobs_run_side_by_side_and_no_more(recipe, stub):
    name = recipe("steps:\n  a: {run: inspect, model: '${x}'}\nmatrix: {x: [1, 2, 3, 4, 5, 6]}\n")
    now, most, lock = [0], [0], threading.Lock()

    def count(argv):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.1)
        with lock:
            now[0] -= 1

    stub.before = count
    compress.run(name, "out", jobs=3)
    assert most[0] == 3
    assert len(stub.ran) == 6


def test_weights_that_are_not_wanted_are_dropped_once_nothing_needs_them(recipe, stub):
    text = CHAIN.replace("    method: magnitude\n", "    method: magnitude\n    retain: receipt\n")
    name = recipe(text)
    compress.run(name, "out")
    assert os.listdir("out/prune") == ["receipt.json"]
    assert Path("out/pack/model.safetensors").exists()
    stub.ran.clear()
    compress.run(name, "out")
    assert stub.ran == []
    # Its output is needed after all: it is made again.
    compress.run(recipe(text.replace("to: bitmask", "to: stock")), "out")
    assert [argv[0] for argv in stub.ran] == ["alpha-prune", "export", "eval"]


def test_a_receipt_that_lacks_a_value_names_what_is_there(recipe, stub):
    name = recipe(CHAIN.replace("after.bytes", "after.byts"))
    with pytest.raises(
        RequestError, match=r"receipt of step `prune` has no `after.byts`"
    ) as caught:
        compress.run(name, "out")
    assert "r.yaml:15:12" in caught.value.message
    assert "`bytes`" in caught.value.hint


def test_a_name_with_dots_inside_a_receipt(recipe, stub):
    value = "${steps.prune.receipt.after.perplexity.wiki.txt.value}"
    text = CHAIN.replace("limit: ${steps.prune.receipt.after.bytes}", f"stride: {value}")
    with pytest.raises(RequestError, match=r"'9\.5' is not a valid"):  # found, and judged
        compress.run(recipe(text), "out")


def test_dry_run_tells_the_graph_and_writes_nothing(recipe, stub, tmp_path):
    name = recipe(GRID)
    plan = compress.run(name, "out", dry_run=True)
    assert [(s["step"], s["runs"], s["known"]) for s in plan.summary["graph"]] == [
        ("train", 2, 0), ("prune", 10, 0), ("all", 1, 0),
    ]  # fmt: skip
    assert "never timed" in plan.render()
    assert os.listdir(tmp_path) == ["r.yaml"]
    assert stub.ran == []
    stub.before = lambda argv: time.sleep(0.05)
    compress.run(name, "out")
    changed = recipe(GRID.replace("epsilon: 0.1", "epsilon: 0.2"))
    plan = compress.run(changed, "out", dry_run=True).summary
    assert [s["known"] for s in plan["graph"]] == [2, 4, 0]
    assert 6 * 0.04 < plan["seconds"] < 60
    assert plan["bytes"] > 0
    assert max(map(len, compress.run(changed, "out", dry_run=True).render().splitlines())) <= 80


def test_overrides_quick_form_and_includes(recipe, stub, monkeypatch):
    monkeypatch.setenv("SOME_DIR", "/models")
    recipe("vars: {model: base, sparsity: 0.3}\ndefaults: {limit: 5}\n", "base.yaml")
    name = recipe(
        "include: base.yaml\nvars: {model: '${env.SOME_DIR}/x', s: [0.5, 0.6]}\n"
        "quick:\n  vars: {model: tiny}\n  steps: {prune: {sparsity: 0.1, allocation: null}}\n"
        "steps:\n  prune: {run: alpha-prune, model: '${model}', method: magnitude,\n"
        "    sparsity: '${sparsity}', allocation: uniform, ppl: ['${here}/t.txt', 'a$${b}'],\n"
        "    registry: '${env.NO_SUCH_THING:-2:4}'}\n"
    )
    compress.run(name, "out", set=["sparsity=0.5"])
    (argv,) = stub.ran
    assert argv[1] == "/models/x"
    assert {"--sparsity=0.5", "--limit=5", "--ppl=./t.txt", "--ppl=a${b}", "--registry=2:4"} <= set(
        argv
    )
    compress.run(name, "quick", set={"quick": True, "steps.prune.max-sparsity": 0.9})
    argv = stub.ran[-1]
    assert argv[1] == "tiny"
    assert "--sparsity=0.1" in argv
    assert "--max-sparsity=0.9" in argv
    assert not any(w.startswith("--allocation") for w in argv)


def test_yaml_is_read_as_people_mean_it(recipe, stub):
    name = recipe(
        "x: &eval {limit: 3}\n".replace("x:", "vars:\n  e:")
        + "steps:\n  a: {run: alpha-prune, model: m, pattern: 2:4, damp: 1e-3, method: sparsegpt,\n"
        "      seed: 010}\n"
    )
    compress.run(name, "out")
    assert {"--pattern=2:4", "--damp=0.001", "--seed=10"} <= set(stub.ran[0])


def test_the_environment_that_a_recipe_sets_counts(recipe, stub):
    name = recipe("env: {OMP_NUM_THREADS: 1}\n" + CHAIN)
    compress.run(name, "out")
    compress.run(recipe("env: {OMP_NUM_THREADS: 2}\n" + CHAIN), "out")
    assert len(stub.ran) == 6


def test_without_output_a_run_lies_under_its_name(recipe, stub):
    result = compress.run(recipe(CHAIN + "quick: {vars: {sparsity: 0.1}}\n"), set=["quick=true"])
    assert result.output == Path("runs/r-quick")
    assert Path("runs/r-quick/run.json").is_file()


def test_report_of_a_run_has_its_rows(recipe, stub):
    compress.run(recipe(GRID + "report: prune\n"), "out")
    rows = compress.report(["out"]).runs
    assert len(rows) == 10
    assert rows[0].name == "flat 0.5 seed 0"
    assert rows[0].after.bytes is not None


def test_the_table_names_files_where_they_lie(recipe, stub):
    result = compress.run(recipe(GRID + "report: prune\n"), "out")
    assert all(run.path.exists() for run in result.table.runs)
