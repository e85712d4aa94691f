"""Killed at any moment, a run resumed gives the bytes of one that was left alone."""

import json
import os
import shutil
import signal
import sys
import traceback

import pytest
import torch

import tiny_models
from compress.checkpoints import workspace
from compress.errors import RequestError
from compress.training import checkpointing, finishing, trainer
from compress.training.command import train_meap, train_spam
from compress.training.display import read_metrics


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def run(call, kill=None):
    """Run `call(progress)` in a process of its own that SIGKILLs itself at `kill`.

    Args:
        kill: "text" (while tokenising), a step's number, "saving" (in the middle of the second
            checkpoint), "placing" (before its rename), "rotating" (after it), "end" (trained),
            "committed" (OUT is there), or None.
    """
    child = os.fork()  # a fork, since a fresh interpreter takes seconds to import torch
    if child:
        return os.waitpid(child, 0)[1]
    torch.set_num_threads(torch.get_num_threads())  # renew torch's pool, which a fork breaks
    try:

        def progress(task, done, total, note=""):
            if (task, str(done)) == ("train", kill) or (task == "tokenise" and kill == "text"):
                die()

        arm(kill)
        call(progress)
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)


def arm(kill):
    """Put the trap where `kill` says."""
    put, rename = checkpointing.put_in_place, os.rename

    def second(action):
        return lambda place, step, keep: action() if step == 4 else put(place, step, keep)

    if kill == "saving":
        save = trainer.Trainer._save_optimizer_and_scheduler
        trainer.Trainer._save_optimizer_and_scheduler = lambda self, place: (
            die() if self.state.global_step == 4 else save(self, place)
        )
    elif kill == "placing":
        checkpointing.put_in_place = second(die)
    elif kill == "rotating":
        os.rename = lambda a, b: (rename(a, b), die() if str(b).endswith("-4") else None)
    elif kill == "end":
        finishing.save_model = die
    elif kill == "committed":
        workspace.Workspace.discard = die


def outcome(place):
    """Weights, losses and logs of an output, without times."""
    logs = [
        {k: v for k, v in entry.items() if k != "tokens_per_s"}
        for entry in read_metrics(place / "metrics.jsonl")
    ]
    receipt = json.loads((place / "receipt.json").read_text())
    timed = {k: v for k, v in receipt["training"].items() if k != "tokens_per_s"}
    return (place / "model.safetensors").read_bytes(), logs, timed, receipt["data"]


@pytest.fixture(scope="module")
def alone(config, text, tmp_path_factory):
    """An undisturbed run with dropout and accumulation."""
    place = tmp_path_factory.mktemp("alone") / "out"
    assert run(job(config, text, place)) == 0
    return outcome(place)


def job(config, text, place, resume=False, **more):
    options = {
        "data": str(text), "valid": str(text.with_name("valid.txt")), "steps": 6,
        "batch_size": 4, "micro_batch": 2, "seqlen": 24, "lr": 1e-2, "optimizer": "adamw",
        "log_every": 1, "save_every": 2, "eval_every": 3, "device": "cpu",
        "objective": "meap", "resume": resume, **more,
    }  # fmt: skip
    return lambda progress: train_spam(config, place, progress=progress, **options)


@pytest.mark.parametrize(
    "kill", ["text", "1", "3", "saving", "placing", "rotating", "5", "end", "committed"]
)
def test_a_killed_run_resumes_to_the_last_bit(kill, config, text, alone, tmp_path):
    place = tmp_path / "out"
    assert run(job(config, text, place), kill) == signal.SIGKILL
    assert place.exists() == (kill == "committed")
    assert run(job(config, text, place, resume=True)) == 0
    assert outcome(place) == alone
    assert not place.with_name("out.partial").exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_a_compiled_model_learns_the_same_and_resumes(config, text, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # its workers don't outlive a fork
    more = {"optimizer": "stable-spam", "reset_every": 2}
    places = [tmp_path / name / "out" for name in ("eager", "whole", "killed")]
    assert run(job(config, text, places[0], **more)) == 0
    assert run(job(config, text, places[1], compile=True, **more)) == 0
    assert run(job(config, text, places[2], compile=True, **more), "3") == signal.SIGKILL
    assert run(job(config, text, places[2], compile=True, resume=True, **more)) == 0
    assert outcome(places[1]) == outcome(places[2])
    eager, compiled = ([e["loss"] for e in outcome(p)[1] if "loss" in e] for p in places[:2])
    assert len(eager) == 6
    assert compiled == pytest.approx(eager, rel=1e-4)


def test_losses_don_t_depend_on_where_logs_fall(config, text, tmp_path):
    """Saves at 2 and 4, logs at 3 and 6: a resumed mean must begin where the other did."""
    places = [tmp_path / name / "out" for name in ("whole", "killed")]
    more = {"log_every": 3}
    assert run(job(config, text, places[0], **more)) == 0
    assert run(job(config, text, places[1], **more), "5") == signal.SIGKILL
    assert run(job(config, text, places[1], resume=True, **more)) == 0
    assert outcome(places[0]) == outcome(places[1])


def test_dropout_resumes_too(text, tmp_path):
    import transformers

    source = tmp_path / "gpt2"
    config = transformers.GPT2Config(
        vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=64,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config.save_pretrained(source)
    tiny_models.tiny_tokenizer().save_pretrained(source)
    assert config.resid_pdrop > 0
    places = [tmp_path / name / "out" for name in ("whole", "killed")]
    assert run(job(source, text, places[0])) == 0
    assert run(job(source, text, places[1]), "3") == signal.SIGKILL
    assert run(job(source, text, places[1], resume=True)) == 0
    assert outcome(places[0]) == outcome(places[1])


def test_a_run_that_trains_a_part_resumes_as_that_part(text, tmp_path):
    """The optimizer's file holds some parameters: they are matched with the right ones."""
    source = tiny_models.make_checkpoint("llama", tmp_path / "source")
    more = {"train_only": "*.1.mlp", "gradient_checkpointing": True, "objective": "ntp"}
    places = [tmp_path / name / "out" for name in ("whole", "killed")]
    assert run(job(source, text, places[0], **more)) == 0
    assert run(job(source, text, places[1], **more), "3") == signal.SIGKILL
    other = {**more, "train_only": "*.0.mlp"}
    with pytest.raises(RequestError, match="train_only"):
        job(source, text, places[1], resume=True, **other)(lambda *a: None)
    assert run(job(source, text, places[1], resume=True, **more)) == 0
    assert outcome(places[0]) == outcome(places[1])


@pytest.mark.parametrize("optimizer", ["spam", "stable-spam"])
def test_killed_in_a_reset_cycle_with_spikes_and_four_bits_it_resumes(
    optimizer, config, text, tmp_path
):
    """Moments, warm-up, blocks drawn, counts of spikes and random rounding all go on."""
    more = {
        "optimizer": optimizer, "reset_every": 3, "inject_spikes": "noise:0.5:50", "warmup": 0.0,
        "quantise": "4", "quantise_activations": True, "quantise_save": "master",
    }  # fmt: skip
    if optimizer == "spam":
        more |= {"density": 0.5, "reset_warmup": 2, "settle": 1}
    places = [tmp_path / name / "out" for name in ("whole", "killed")]
    assert run(job(config, text, places[0], **more)) == 0
    assert run(job(config, text, places[1], **more), "5") == signal.SIGKILL
    assert run(job(config, text, places[1], resume=True, **more)) == 0
    assert outcome(places[0]) == outcome(places[1])


@pytest.mark.parametrize("arch", ["llama", "mixtral"])
def test_an_edited_checkpoint_resumes(arch, text, tmp_path):
    """Low-rank modules and the guard come back: the stock Trainer would leave them as they were."""
    import compress
    from compress.checkpoints import edits

    model = tiny_models.build(arch)
    name = "model.layers.0.self_attn.o_proj"
    edits.apply(model, {name: {"kind": "lowrank", "rank": 4}})
    source = tmp_path / "edited"
    compress.save(model, source)
    tiny_models.tiny_tokenizer().save_pretrained(source)
    places = [tmp_path / name / "out" for name in ("whole", "killed")]
    assert run(job(source, text, places[0])) == 0
    assert run(job(source, text, places[1]), "5") == signal.SIGKILL
    assert run(job(source, text, places[1], resume=True)) == 0
    assert outcome(places[0]) == outcome(places[1])
    loaded = compress.load(places[1])
    assert type(loaded.get_submodule(name)).__name__ == "LowRank"


def test_only_the_newest_checkpoints_stay(config, text, tmp_path):
    place = tmp_path / "out"
    assert run(job(config, text, place, keep=1), "5") == signal.SIGKILL
    left = tmp_path / "out.partial" / "checkpoints"
    assert [p.name for p in left.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lr": 2e-2}, "`options.lr` was 0.01 in the interrupted run and is 0.02 now"),
        ({"batch_size": 8}, "`options.batch_size` was 4"),
        ({"seed": 1}, "`options.seed` was 0"),
    ],
)
def test_another_configuration_is_refused_and_says_what_differs(
    changed, said, config, text, tmp_path
):
    place = tmp_path / "out"
    assert run(job(config, text, place), "3") == signal.SIGKILL
    left = sorted(p.name for p in (tmp_path / "out.partial" / "checkpoints").iterdir())
    with pytest.raises(RequestError, match="can't resume") as caught:
        job(config, text, place, resume=True, **changed)(lambda *a, **k: None)
    assert said in caught.value.message
    assert sorted(p.name for p in (tmp_path / "out.partial" / "checkpoints").iterdir()) == left


def test_another_model_is_refused(config, text, tmp_path):
    place, other = tmp_path / "out", tmp_path / "other"
    assert run(job(config, text, place), "3") == signal.SIGKILL
    other.mkdir()
    for file in config.iterdir():
        content = file.read_text().replace('"hidden_size": 32', '"hidden_size": 64')
        (other / file.name).write_text(content)
    with pytest.raises(RequestError, match="`model` was"):
        job(other, text, place, resume=True)(lambda *a, **k: None)


def test_nothing_to_resume(config, text, tmp_path):
    with pytest.raises(RequestError, match="nothing to resume"):
        job(config, text, tmp_path / "out", resume=True)(lambda *a, **k: None)


def test_fine_tuning_with_masks_resumes(config, questions, tmp_path):
    options = {
        "data": str(questions), "sft": "q:a", "steps": 5, "batch_size": 4, "micro_batch": 2,
        "seqlen": 48, "lr": 1e-2, "save_every": 2, "log_every": 1, "min_response": 12,
        "device": "cpu",
    }  # fmt: skip

    def call(place, resume=False):
        return lambda progress: train_meap(
            config, place, progress=progress, resume=resume, **options
        )

    places = [tmp_path / name / "out" for name in ("whole", "killed")]
    assert run(call(places[0])) == 0
    assert run(call(places[1]), "3") == signal.SIGKILL
    assert run(call(places[1], resume=True)) == 0
    assert outcome(places[0]) == outcome(places[1])
