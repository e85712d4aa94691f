"""Defaults of the doors, what settings compute, and that every fault is said at once."""

import importlib
import inspect

import pytest

from compress.errors import RequestError
from compress.training.arguments import arrange, eval_every, log_every, save_every
from compress.training.schedule import make_schedule, warmup_steps
from compress.training.settings import DOORS, TrainSettings
from compress.training.sizes import PRESETS, preset_config

NORMS = ("pre", "post", "mix", "lns")
DATA = {"data": ("a.txt",), "steps": 100}


def make(door="train-spam", **options):
    return TrainSettings.of_door(door, {**DATA, **options})


def faults(door="train-spam", **options):
    with pytest.raises(RequestError) as caught:
        make(door, **options).check(NORMS)
    return caught.value


@pytest.mark.parametrize("door", DOORS)
def test_the_defaults_are_fine_and_the_help_tells_them(door):
    settings = make(door)
    settings.check(NORMS)
    command = importlib.import_module(f"compress.cli.{door.replace('-', '_')}")
    told = command.DEFAULTS
    assert told["objective"] == settings.objective
    assert told["optimizer"] == settings.optimizer
    assert told["norm"] == (settings.norm or "as they are")
    assert told["seqlen"] == settings.length
    assert told["batch_size"] == settings.batch_size
    assert told["weight_decay"] == settings.weight_decay
    assert told["betas"] == settings.moments
    assert settings.max_grad_norm == 1.0


def test_every_option_of_the_command_line_is_a_setting():
    command = importlib.import_module("compress.cli.train_meap").command
    known = set(TrainSettings.__dataclass_fields__)
    named = {p.name for p in command.params}
    calls = {"model", "output", "overwrite", "resume", "as_json", "quiet", "debug", "config"}
    calls |= {"revision", "token", "trust_remote_code", "push_to_hub"}
    assert named - calls == known - {"default_seqlen", "default_betas"}


def test_the_doors_take_all_options():
    from compress.training import command

    for name in ("train_spam", "train_meap", "train_mixln"):
        assert "options" in inspect.signature(getattr(command, name)).parameters
    mixed = make("train-mixln", optimizer="spam", objective="meap", density=0.25)
    mixed.check(NORMS)
    assert (mixed.norm, mixed.ratio) == ("mix", 0.15)
    with pytest.raises(TypeError, match="no option `optimiser`"):
        make(optimiser="spam")


def test_an_option_that_is_none_has_the_default():
    assert make("train-meap", batch_size=None).batch_size == 256
    assert make(data="one.txt").data == ("one.txt",)


def test_ratio_and_steps():
    assert make("train-meap").ratio == 0.15
    assert make("train-meap", sft="q:a").ratio == 0.10
    assert make("train-meap", mask_ratio=0.3).ratio == 0.3
    assert make().ratio == 0.0
    assert make(steps=None, tokens=1000, seqlen=10, batch_size=9).run_steps() == 12
    assert make(steps=None, preset="llama-130m").run_steps() == 20_000


def test_only_options_that_were_given_reach_the_optimizer():
    plain = {"betas": (0.9, 0.999), "weight_decay": 0.0}
    assert make(optimizer="adamw").optimizer_options() == plain
    assert make(seed=7).optimizer_options() == {**plain, "seed": 7}
    assert make(optimizer="stable-spam").optimizer_options() == {**plain, "total_steps": 100}
    assert "betas" not in make(optimizer="lion").optimizer_options()  # its own are other ones
    assert make(optimizer="lion", betas=(0.8, 0.9)).optimizer_options()["betas"] == (0.8, 0.9)
    given = make(theta=50.0, eps=1e-6, reset_every=80).optimizer_options()
    assert given["theta"] == 50.0
    assert (given["eps"], given["reset_every"]) == (1e-6, 80)


def test_a_resume_may_change_what_changes_no_result():
    assert make(skip_nonfinite=3, keep=5).fingerprint() == make().fingerprint()
    assert make(lr=1.0).fingerprint() != make().fingerprint()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "meap", "mask_ratio": 1.0}, "`--mask-ratio 1` is outside [0, 1)"),
        ({"objective": "meap", "mask_ratio": -0.1}, "`--mask-ratio -0.1` is outside [0, 1)"),
        ({"norm": "mix", "post_fraction": 1.5}, "`--post-fraction 1.5` is outside [0, 1]"),
        ({"norm": "mix", "post_fraction": float("nan")}, "`--post-fraction nan` is outside"),
        ({"density": 0.0}, "`--density 0` is outside (0, 1]"),
        ({"density": 1.1}, "`--density 1.1` is outside (0, 1]"),
        ({"lr": 0.0}, "`--lr 0` isn't a positive number"),
        ({"lr": -1.0}, "`--lr -1` isn't a positive number"),
        ({"lr": float("nan")}, "`--lr nan` isn't a positive number"),
        ({"steps": 0}, "`--steps 0` is less than 1"),
        ({"batch_size": 0}, "`--batch-size 0` is less than 1"),
        ({"seqlen": 1}, "`--seqlen 1` is less than 2"),
        ({"steps": None}, "no length of the run"),
        ({"tokens": 5}, "`--steps` and `--tokens` both"),
        ({"data": ()}, "no training text"),
        ({"warmup": 200.0}, "`--warmup 200` is longer than the run of 100"),
        ({"warmup": -1.0}, "`--warmup -1` isn't 0 or more"),
        ({"betas": (0.9, 1.0)}, "`--betas 1` is outside [0, 1)"),
        ({"mask_ratio": 0.1}, "`--mask-ratio` can't act with `--objective ntp`"),
        ({"mask_special": True}, "`--mask-special` can't act"),
        ({"objective": "meap", "sft_mode": "concat"}, "`--sft-mode` can't act without `--sft`"),
        ({"objective": "meap", "min_response": 9}, "`--min-response` can't act without `--sft`"),
        ({"sft": "q"}, "`--sft q` isn't PROMPT:ANSWER"),
        ({"sft": "q:a", "separate_documents": True}, "`--separate-documents` can't act"),
        ({"post_fraction": 0.5}, "`--post-fraction` can't act with `--norm pre`"),
        ({"norm": "lns", "post_fraction": 0.5}, "`--post-fraction` can't act with `--norm lns`"),
        ({"optimizer": "adamw", "density": 0.5}, "`--density` can't act with `--optimizer adamw`"),
        ({"optimizer": "adamw", "theta": 9.0}, "`--theta` can't act with `--optimizer adamw`"),
        ({"gamma1": 0.5}, "`--gamma1` can't act with `--optimizer spam`"),
        ({"optimizer": "adafactor", "betas": (0.9, 0.9)}, "`--betas` can't act with"),
        ({"optimizer": "lion", "eps": 1e-8}, "`--eps` can't act with `--optimizer lion`"),
        ({"quantise": "3"}, "`--quantise 3` isn't known"),
        ({"quantise_group": 64}, "`--quantise-group` can't act without `--quantise`"),
        ({"quantise_activations": True}, "`--quantise-activations` can't act without"),
        ({"quantise_save": "master"}, "`--quantise-save` can't act without `--quantise`"),
        ({"quantise": "4", "quantise_group": 0}, "`--quantise-group 0` is less than 1"),
        ({"quantise": "4", "quantise_save": "both"}, "`--quantise-save both` isn't known"),
        ({"inject_spikes": "noises"}, "`--inject-spikes noises`: no kind `noises`"),
        ({"inject_spikes": "noise:2"}, "the share 2 is outside (0, 1]"),
        ({"inject_spikes": "noise", "fsdp": True}, "not with `--fsdp`"),
        ({"spikes": True, "deepspeed": "x.json"}, "DeepSpeed keeps gradients to itself"),
        ({"spikes": False, "spike_threshold": 9.0}, "`--spike-threshold` can't act with"),
        ({"spike_threshold": 0.0}, "`--spike-threshold 0` isn't a positive number"),
        ({"fsdp": True, "deepspeed": "x.json"}, "two ways to shard"),
        ({"skip_nonfinite": -1}, "`--skip-nonfinite -1` is less than 0"),
    ],
)
def test_what_is_refused(options, said):
    assert said in faults(**options).message


@pytest.mark.parametrize(
    ("option", "value", "near"),
    [
        ("optimizer", "spamm", "spam"),
        ("norm", "mixx", "mix"),
        ("objective", "mep", "meap"),
        ("preset", "llama-60", "llama-60m"),
        ("schedule", "cosin", "cosine"),
        ("precision", "bf17", "bf16"),
    ],
)
def test_a_misspelt_name_gets_the_near_one(option, value, near):
    error = faults(**{option: value})
    assert f"`--{option} {value}` isn't known" in error.message
    assert f"did you mean `{near}`" in error.hint


def test_a_misspelt_preset_needs_no_length():
    error = faults(preset="llama-60", steps=None)
    assert error.message == "`--preset llama-60` isn't known"


def test_all_faults_come_in_one_line():
    error = faults(lr=0.0, density=2.0, norm="mixx")
    assert error.message.count(";") == 2
    assert "\n" not in error.message


# Schedules, sizes, arrangement


def rates(name, steps, warmup, least):
    import torch
    from transformers import get_scheduler

    plan = make_schedule(name, steps, warmup, least)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        plan.kind, optimizer, plan.warmup_steps, steps, scheduler_specific_kwargs=plan.options
    )
    found = []
    for _ in range(steps + 1):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_rates_rise_to_the_peak_and_end_at_the_least(name):
    found = rates(name, 100, 0.1, 0.1)
    assert max(found) == found[10] == pytest.approx(1.0)
    assert found[:11] == sorted(found[:11])
    assert found[100] == pytest.approx(0.1)
    assert found[10:] == sorted(found[10:], reverse=True)


def test_cosine_is_the_papers():
    import math

    found = rates("cosine", 100, 10, 0.1)
    for step in range(10, 101):
        share = (step - 10) / 90
        assert found[step] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))


def test_constant_and_wsd_stay():
    assert rates("constant", 50, 5, 0.1)[5:] == [1.0] * 46
    assert rates("wsd", 100, 10, 0.0)[10:90] == [1.0] * 80


def test_warmup_is_a_share_or_steps():
    assert [warmup_steps(w, 100) for w in (0, 0.1, 0.101, 1, 30.0)] == [0, 10, 11, 1, 30]


def test_presets_are_of_their_size():
    sizes = {"9m": 9, "60m": 58, "130m": 134, "350m": 368, "1b": 1339, "7b": 6738}
    for own, millions in sizes.items():
        name = f"llama-{own}"
        size, vocabulary = PRESETS[name], 32000
        config = preset_config(name, vocabulary, 256)
        assert config.vocab_size == vocabulary
        h, m = size.hidden, size.mlp
        count = 2 * vocabulary * h + h + size.layers * (4 * h * h + 3 * h * m + 2 * h)
        assert count / 1e6 == pytest.approx(millions, rel=0.02)
    assert preset_config("llama-9m", 500, 4096).max_position_embeddings == 4096
    assert preset_config("llama-9m", 500, 256).vocab_size == 512


def test_arrangement():
    assert arrange(512, 1, None, "cpu") == (8, 64)
    assert arrange(512, 4, None, "cuda") == (32, 4)
    assert arrange(6, 2, None, "cpu") == (3, 1)
    assert arrange(22, 1, None, "cpu") == (2, 11)
    assert arrange(8, 2, 2, "cpu") == (2, 2)
    with pytest.raises(RequestError, match="can't be shared by 3"):
        arrange(8, 3, None, "cpu")
    with pytest.raises(RequestError, match="`--micro-batch 3` doesn't divide"):
        arrange(8, 1, 3, "cpu")


def test_how_often():
    assert [log_every(make(steps=n)) for n in (5, 300, 10_000)] == [1, 3, 10]
    assert [save_every(make(steps=n)) for n in (5, 300, 100_000)] == [1, 30, 1000]
    assert eval_every(make(steps=100_000)) == 10_000
    assert log_every(make(log_every=7)) == 7
