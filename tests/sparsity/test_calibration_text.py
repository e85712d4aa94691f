"""`alpha-prune --calib`: formats, mixes, self, leakage; wrong requests are one line and code 2."""

from __future__ import annotations

import json

import pytest

import compress
from compress.cli.main import call

PAIRS = [{"question": f"how many {i}?", "answer": f"so {i}\n#### {i}"} for i in range(120)]


@pytest.fixture
def registry(tmp_path):
    """A registry with local copies, and one entry without rationales."""
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in PAIRS))
    path = tmp_path / "registry.yaml"
    path.write_text(
        "schema: 1\ncorpora:\n"
        "  gsm8k: {like: gsm8k, local: {calibration: pairs.jsonl}}\n"
        "  svamp: {like: svamp, local: {calibration: pairs.jsonl}}\n"
        "  twin: {like: gsm8k, local: {calibration: pairs.jsonl, evaluation: pairs.jsonl}}\n"
    )
    return path


@pytest.fixture
def asked(checkpoint, tmp_path, registry, capsys):
    """Run alpha-prune with some calibration text; return the code and what stderr said."""

    def run(*argv, samples=4, seqlen=64):
        model, out = str(checkpoint()), tmp_path / "out"
        capsys.readouterr()  # what making the checkpoint has printed
        size = ["--samples", str(samples), "--seqlen", str(seqlen), "--registry", str(registry)]
        code = call(["alpha-prune", model, "-o", str(out), *size, *argv])
        if code:
            assert not out.exists()
            assert not out.with_name("out.partial").exists()
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("argv", "said", "remedy"),
    [
        (["--calib", "gms8k@icl"], "neither a file nor a corpus", "did you mean `gsm8k`"),
        (["--calib", "gsm8k@ilc"], "unknown format `ilc`", "did you mean `icl`"),
        (["--calib", "svamp@icl-cot"], "no rationale field", "@icl`"),
        (["--calib", "demo@icl"], "raw text, which has no format `icl`", "`prompt` template"),
        (["--calib", "svamp@icl"], "no column `Body`", "its columns: question, answer"),
        (["--calib", "gsm8k:quest"], "no text column `quest`", "question, answer"),
        (["--calib", "gsm8k@icl-500"], "asks for 500 examples a prompt and has 120", "@icl-120"),
        (["--calib", "anli_r1@icl"], "offline", "like: anli_r1"),
        (["--calib", "demo=0.5,gsm8k"], "has no share", "leave all shares out"),
        (["--calib", "demo", "--doc-sampling", "lnog"], "isn't a doc-sampling", "long"),
        (["--calib", "demo", "--select", "colar"], "isn't a select", "did you mean `cola`"),
        (["--calib", "twin:question", "--ppl", "twin:question"], "both the", "--allow-leakage"),
        (["--calib", "c4", "--registry", "nowhere.yaml"], "nowhere.yaml", "can't be read"),
    ],
)
def test_a_wrong_request_is_one_line(asked, argv, said, remedy):
    code, err = asked(*argv)
    assert code == 2
    lines = err.splitlines()
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert remedy in err
    assert "Traceback" not in err
    assert len(lines) <= 4


def test_too_little_text_even_when_packed(asked):
    code, err = asked("--calib", "gsm8k@icl", samples=500)
    assert code == 2
    assert "in 120 examples, enough for" in err
    assert "of 500 windows of 64" in err


def test_no_long_document_says_the_longest(asked):
    code, err = asked("--calib", "gsm8k", "--doc-sampling", "long")
    assert code == 2
    assert "no document is as long as a window of 64; the longest of 120 has" in err


def test_a_malformed_registry_names_the_line(asked, registry):
    registry.write_text(registry.read_text() + "  more: {hub: a/b, license: MIT}\n")
    code, err = asked("--calib", "demo")
    assert code == 2
    assert f"{registry}:6: corpus `more`: `license`: is no field" in err
    assert "did you mean `licence`" in err


@pytest.mark.parametrize(
    "calib", ["gsm8k@icl", "gsm8k@cot=0.5+demo=0.5", "gsm8k@zero-shot,demo", "self", "random"]
)
def test_every_kind_of_text_prunes(checkpoint, tmp_path, registry, calib):
    done = compress.alpha_prune(
        checkpoint(), tmp_path / "out", calib=calib, registry=str(registry), samples=4, seqlen=48
    )
    data = done.receipt.as_dict()["calibration"]
    assert data["windows"] == 4
    assert 0 < data["tokens"] <= 4 * 48
    assert data["digest"].startswith("sha256:")


def test_isolated_and_cola_prune_too(checkpoint, tmp_path):
    for number, options in enumerate([{"doc_sampling": "isolated"}, {"select": "cola"}]):
        done = compress.alpha_prune(
            checkpoint(), tmp_path / f"{number}", calib="demo", samples=4, seqlen=48, **options
        )
        assert done.receipt.as_dict()["calibration"]["tokens"] == 4 * 48


def test_batches_of_any_size_prune_the_same_weights(checkpoint, tmp_path, registry):
    found = []
    for size in (1, 4):
        options = {"calib": "gsm8k@icl", "registry": str(registry), "samples": 4, "seqlen": 48}
        done = compress.alpha_prune(
            checkpoint(), None, batch_size=size, allocation="uniform", **options
        )
        found.append(done.model.model.layers[0].mlp.down_proj.weight == 0)
    assert (found[0] != found[1]).float().mean() < 0.002  # ties of rounding alone


def test_what_is_near_the_evaluation_is_noted(checkpoint, tmp_path):
    done = compress.alpha_prune(
        checkpoint(),
        tmp_path / "out",
        calib="demo",
        ppl=("demo",),
        samples=4,
        seqlen=48,
        limit=2,
    )
    notes = " ".join(done.receipt.as_dict()["notes"])
    assert "of the data set that demo measures (another split)" in notes


def test_windows_held_out_for_the_search_may_be_padded(checkpoint, tmp_path, registry):
    done = compress.alpha_prune(
        checkpoint(),
        tmp_path / "out",
        calib="gsm8k@icl",
        registry=str(registry),
        samples=4,
        seqlen=48,
        batch_size=4,
        allocation="atp",
        atp_held_out=3,
        atp_candidates=2,
    )
    assert done.receipt.as_dict()["calibration"]["windows"] == 4


def test_passages_of_a_tasks_items_are_left_out(checkpoint, tmp_path):
    task = tmp_path / "tasks"
    task.mkdir()
    items = [f"item {i} asks what the keeper of the old lighthouse saw at night in storm {i}"
             for i in range(6)]  # fmt: skip
    rows = [{"context": item, "choices": ["a ship", "nothing"], "gold": 0} for item in items]
    (task / "keeper.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task / "keeper.yaml").write_text(
        "task: keeper\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {task / 'keeper.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{context}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
        "metric_list: [{metric: acc}]\n"
    )
    texts = [
        f"text {i} is about nothing that anybody would ever want to be asked" for i in range(60)
    ]
    texts[5:35:3] = items[:5] * 2
    (tmp_path / "seen.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    options = {
        "calib": str(tmp_path / "seen.jsonl"),
        "tasks": ("keeper",),
        "task_dirs": (str(task),),
        "samples": 8,
        "seqlen": 128,
    }
    done = compress.alpha_prune(checkpoint(), tmp_path / "out", **options)
    leaked = done.receipt.as_dict()["calibration"]["leaked"]
    assert leaked["keeper"] > 0
    assert f"left out {leaked['keeper']} windows" in " ".join(done.receipt.as_dict()["notes"])
    let = compress.alpha_prune(checkpoint(), tmp_path / "let", allow_leakage=True, **options)
    assert "leaked" not in let.receipt.as_dict()["calibration"]


def test_eval_reads_a_registry(checkpoint, registry, capsys):
    argv = ["eval", str(checkpoint()), "--ppl", "twin@zero-shot", "--registry", str(registry)]
    capsys.readouterr()
    assert call([*argv, "--limit", "2", "--eval-seqlen", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["models"][0]["perplexity"]
    assert found["twin@zero-shot"]["windows"] == 2
