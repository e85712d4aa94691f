"""lm-eval tasks on a model in memory: own directories, scores, items, silence, faults."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compress
from compress.checkpoints.source import open_source
from compress.errors import RequestError, RunError
from compress.evaluation.taskfiles import write_stubs
from compress.evaluation.tasks import TaskSet, run_tasks
from tiny_models import make_checkpoint

CHOICE = """
task: my_choice
dataset_path: json
dataset_kwargs: {data_files: {test: data/items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{q}} A:"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITE = """
include: choice.yaml
task: my_writing
output_type: generate_until
generation_kwargs: {until: ["</s>"], do_sample: false, max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROLL = """
include: choice.yaml
task: my_text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}}"
metric_list: [{metric: word_perplexity}]
"""
ITEMS = [
    {"q": f"Tim had {i} apples", "choices": ["red", "blue", "green"], "gold": (i * 7) % 3}
    for i in range(12)
]


def _write(directory: Path, **files):
    (directory / "data").mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(item) + "\n" for item in ITEMS)
    (directory / "data" / "items.jsonl").write_text(lines)
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "own"
    group = "group: my_group\ntask: [my_choice, my_other]\n"
    other = CHOICE.replace("my_choice", "my_other").replace("Q: ", "")
    return _write(path, choice=CHOICE, writing=WRITE, text=ROLL, other=other, group=group)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    source = open_source(make_checkpoint("llama", tmp_path_factory.mktemp("llama")))
    return source.load(), source.tokenizer()


@torch.inference_mode()
def _likeliest(model, tokenizer, item):
    """Multiple choice by hand: the choice with the largest sum of log-probabilities."""
    context = tokenizer(f"Q: {item['q']} A:")["input_ids"]
    scores = []
    for choice in item["choices"]:
        rest = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
        logs = model(torch.tensor([context + rest])).logits[0].double().log_softmax(-1)
        scores.append(sum(float(logs[len(context) + i - 1, t]) for i, t in enumerate(rest)))
    return max(range(3), key=scores.__getitem__)


def test_scores_are_those_of_a_calculation_by_hand(loaded, directory):
    score = run_tasks(*loaded, ["my_choice"], task_dirs=[directory])["my_choice"]
    right = [float(_likeliest(*loaded, item) == item["gold"]) for item in ITEMS]
    assert list(score.items.values()) == right
    mean = sum(right) / len(right)
    assert score.acc == pytest.approx(mean)
    spread = sum((r - mean) ** 2 for r in right) / 11
    assert score.stderr == pytest.approx(math.sqrt(spread / 12))
    assert score.n == 12
    assert score.as_receipt() == {"acc": score.acc, "stderr": score.stderr, "n": 12}


def test_one_task_set_serves_several_models_and_batch_sizes(loaded, directory):
    tasks = TaskSet(["my_choice", "my_writing"], [directory])
    first = tasks.run(*loaded)
    again = tasks.run(*loaded, batch_size=1)
    assert first == again
    assert first["my_writing"].metric == "exact_match"
    assert first["my_writing"].as_receipt()["metric"] == "exact_match"


def test_the_users_tokenizer_stays_as_it_is(loaded, directory):
    model, tokenizer = loaded
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    run_tasks(model, bare, ["my_choice"], task_dirs=[directory], limit=1)
    assert bare.pad_token is None


def test_a_group_gives_its_tasks_and_their_mean(loaded, directory):
    scores = run_tasks(*loaded, ["my_group"], task_dirs=[directory])
    assert set(scores) == {"my_group", "my_choice", "my_other"}
    both = [scores["my_choice"], scores["my_other"]]
    assert scores["my_group"].n == 24
    assert scores["my_group"].acc == pytest.approx(sum(s.acc for s in both) / 2)
    assert len(scores["my_group"].items) == 24


def test_a_metric_that_is_no_mean_has_no_items_and_its_own_name(loaded, directory):
    score = run_tasks(*loaded, ["my_text"], task_dirs=[directory])["my_text"]
    entry = score.as_receipt()
    assert entry["word_perplexity"] > 1
    assert "acc" not in entry
    assert "stderr" not in entry
    assert score.items == {}


def test_limit_takes_the_first_items(loaded, directory):
    tasks = TaskSet(["my_choice"], [directory])
    every, some = tasks.run(*loaded)["my_choice"], tasks.run(*loaded, limit=5)["my_choice"]
    assert some.n == 5
    assert list(some.items.items()) == list(every.items.items())[:5]


def test_progress_is_told_and_nothing_is_printed(loaded, directory, capfd):
    calls = []
    run_tasks(
        *loaded,
        ["my_choice"],
        task_dirs=[directory],
        progress=lambda *call: calls.append(call[:3]),
    )
    assert calls[-1][1] == calls[-1][2]
    written = capfd.readouterr()
    assert written.out == ""
    assert written.err == ""


def test_the_harness_gets_its_bars_back(loaded, directory):
    import lm_eval.models.huggingface
    import tqdm

    run_tasks(*loaded, ["my_choice"], task_dirs=[directory], limit=1)
    assert lm_eval.models.huggingface.tqdm is tqdm.tqdm


def test_works_offline_from_elsewhere_with_no_writable_cache(directory, tmp_path):
    # A fresh process, in a directory other than the tasks', whose HF_HOME can't be made.
    (tmp_path / "file").write_text("")
    program = (
        "import transformers, sys, compress\n"
        "from compress.evaluation.tasks import TaskSet\n"
        f"tasks = TaskSet(['my_choice'], [{str(directory)!r}])\n"
        "print(len(tasks.tasks['my_choice'].test_docs()))"
    )
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "file" / "home"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(compress.__file__).parent.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "12"


# ---- faults


def test_an_unknown_task_suggests_near_ones(directory):
    with pytest.raises(RequestError, match="unknown task `my_choise`") as error:
        TaskSet(["my_choise"], [directory])
    assert "did you mean `my_choice`" in error.value.hint
    assert len(error.value.hint) < 500


def test_an_unknown_task_near_one_of_the_harness(directory):
    with pytest.raises(RequestError, match="unknown task `arc_eazy`") as error:
        TaskSet(["my_choice", "arc_eazy"], [directory])
    assert "`arc_easy`" in error.value.hint


def test_a_task_directory_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match="no such directory"):
        TaskSet(["my_choice"], [tmp_path / "gone"])


def test_a_data_file_that_is_not_there(tmp_path):
    bad = CHOICE.replace("items.jsonl", "gone.jsonl")
    with pytest.raises(RequestError, match=r"choice\.yaml.*gone\.jsonl"):
        TaskSet(["my_choice"], [_write(tmp_path / "own", choice=bad)])


def test_a_broken_task_file(tmp_path):
    with pytest.raises(RequestError, match=r"choice\.yaml"):
        TaskSet(["my_choice"], [_write(tmp_path / "own", choice="task: [")])


def test_a_field_that_the_data_lack(loaded, tmp_path):
    bad = CHOICE.replace("doc_to_target: gold", 'doc_to_target: "{{answer.index}}"')
    tasks = TaskSet(["my_choice"], [_write(tmp_path / "own", choice=CHOICE)])
    assert tasks.names == ["my_choice"]
    with pytest.raises((RunError, RequestError), match="my_choice"):
        run_tasks(*loaded, ["my_choice"], task_dirs=[_write(tmp_path / "bad", choice=bad)])


def test_a_limit_below_one(loaded, directory):
    with pytest.raises(RequestError, match="limit"):
        run_tasks(*loaded, ["my_choice"], task_dirs=[directory], limit=0)


def test_a_model_that_is_no_language_model(directory, tmp_path):
    source = open_source(make_checkpoint("bert", tmp_path / "bert"))
    with pytest.raises(RequestError, match="BertForMaskedLM"):
        run_tasks(source.load(), source.tokenizer(), ["my_choice"], task_dirs=[directory])


def test_python_in_a_task_file_is_not_run_while_paths_are_resolved(tmp_path):
    own = _write(tmp_path / "own", choice=CHOICE + "process_docs: !function boom.boom\n")
    (own / "boom.py").write_text("raise SystemExit('ran')\n")
    (tmp_path / "stubs").mkdir()
    write_stubs([own], tmp_path / "stubs")
    assert "items.jsonl" in (tmp_path / "stubs" / "0.yaml").read_text()
