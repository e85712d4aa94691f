"""Fine-tuning of condensed layers, the number of layers by speed, and drift by layer."""

import json
import os
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM

import compress
from compress.errors import RequestError, RunError
from compress.experts.divergence import js_divergence
from compress.experts.pace import Pace, layers_for_speed
from tiny_models import make_batch, make_checkpoint

BATCHES = [make_batch(4, 24, seed=s) for s in range(3)]
TUNED = {"finetune": 4, "finetune_lr": 1e-2, "finetune_batch": 2, "finetune_seqlen": 24}
TUNED |= {"device": "cpu"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    return str(path)


def weights(place):
    return AutoModelForCausalLM.from_pretrained(place).state_dict()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("mixtral", {"layers": "i:1", "experts": 2}),
        ("qwen2_moe", {"layers": "all", "experts": 2, "shared_gate": "keep"}),
        ("qwen2_moe", {"mode": "prune", "experts": 3}),
    ],
    ids=["edit", "gate", "prune"],
)
def test_the_condensed_layers_mlps_move_and_nothing_else(text, tmp_path, family, options):
    """To the last bit: no router, no gate of a shared MLP, no other layer."""
    source = make_checkpoint(family, tmp_path / "src")
    plain = compress.cd_moe_condense(source, tmp_path / "plain", batches=BATCHES, **options)
    done = compress.cd_moe_condense(
        source, tmp_path / "out", batches=BATCHES, finetune_data=text, ppl=text, limit=2,
        eval_seqlen=32, **options, **TUNED,
    )  # fmt: skip
    before, after = weights(tmp_path / "plain"), weights(tmp_path / "out")
    changed = [row["module"] for row in plain.plan.rows]
    assert before.keys() == after.keys()
    for name, value in before.items():
        inside = any(name.startswith(f"{module}.") for module in changed)
        moves = inside and any(part.endswith("_proj") for part in name.split("."))
        assert torch.equal(after[name], value) != moves, name
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    loss = {
        side: receipt[side]["perplexity"][text]["value"]
        for side in ("before", "condensed", "after")
    }
    assert loss["after"] < loss["condensed"]  # it is trained on that very text
    assert receipt["tuning"]["comparison"]["perplexity"][text]["difference"] < 0
    moved = sum(v.numel() for n, v in before.items() if not torch.equal(after[n], v))
    assert receipt["training"]["trained"]["parameters"] == moved
    assert receipt["training"]["steps"] == 4
    files = list((tmp_path / "out").glob("*.safetensors*"))
    assert [(p.name, p.stat().st_nlink) for p in files] == [("model.safetensors", 1)]
    assert {"finetune.jsonl", "finetune.png"} <= {p.name for p in (tmp_path / "out").iterdir()}
    shown = done.render()
    assert "before   condensed   tuned" in shown
    assert "for 4 steps" in shown


@pytest.mark.parametrize("kill", ["2", "tuned"])
def test_killed_while_tuning_it_resumes_to_the_same_bytes(text, tmp_path, kill):
    source = make_checkpoint("qwen2_moe", tmp_path / "src")
    options = {"layers": 2, "experts": 1, "calib": text, "samples": 8, "seqlen": 32, **TUNED}
    place = tmp_path / "out"
    compress.cd_moe_condense(source, tmp_path / "whole", **options)
    child = os.fork()
    if not child:
        torch.set_num_threads(torch.get_num_threads())  # renew torch's pool, which a fork breaks

        def progress(task, done, total, note=""):
            tuned = (tmp_path / "out.partial" / "tuned" / "receipt.json").is_file()
            if (task, str(done)) == ("train", kill) or (kill == "tuned" and tuned):
                os.kill(os.getpid(), signal.SIGKILL)

        compress.cd_moe_condense(source, place, progress=progress, **options)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not place.exists()
    compress.cd_moe_condense(source, place, resume=True, **options)
    for name in ("model.safetensors", "config.json", "plan.json"):
        assert (place / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not place.with_name("out.partial").exists()


def test_drift_is_the_divergence_of_hidden_states(tmp_path):
    """As transformers' own hidden states give it; none before the first layer condensed."""
    source = make_checkpoint("qwen2_moe", tmp_path / "src")
    done = compress.cd_moe_condense(
        source, tmp_path / "out", batches=BATCHES, layers="i:1", experts=1
    )
    rows = done.as_dict()["experts"]["divergence"]
    old, new = (AutoModelForCausalLM.from_pretrained(p) for p in (source, tmp_path / "out"))
    with torch.no_grad():
        first, second = (
            m.eval()(**BATCHES[0], output_hidden_states=True).hidden_states for m in (old, new)
        )
    assert rows[0] == {"layer": 0, "js": 0.0, "relative": 0.0}
    for index in (1, 2):  # the last hidden state is behind the norm
        a, b = first[index + 1], second[index + 1]
        assert rows[index]["js"] == pytest.approx(float(js_divergence(a, b).mean()), rel=1e-3)
        assert rows[index]["relative"] == pytest.approx(
            float((a - b).square().sum() / a.square().sum()), rel=1e-3
        )
    assert "layer 1 *" in done.render()


class FakePace(Pace):
    """Layers save fixed shares of the time."""

    def __init__(self, target, saved):
        self.target, self.saved, self.regime = target, saved, "decode"
        self._job = type("J", (), {"settings": type("S", (), {"target_speed": f"{target}x"})})

    def of(self, layers):
        return 1 / (1 - sum(self.saved[layer] for layer in layers))


@pytest.mark.parametrize(
    ("target", "wanted"), [(1.05, [0]), (1.2, [0, 1]), (1.3, [0, 1, 2]), (1.6, [0, 1, 2, 3])]
)
def test_the_fewest_layers_that_are_fast_enough(target, wanted):
    """With unequal savings, so that the guess is too few at first, or too many."""
    pool = [0, 1, 2, 3]
    pace = FakePace(target, [0.05, 0.15, 0.05, 0.15])
    assert layers_for_speed(pace, pool, lambda n: pool[:n]) == wanted
    with pytest.raises(RequestError, match=r"can't be reached: .* 1\.67x"):
        layers_for_speed(FakePace(1.7, pace.saved), pool, lambda n: pool[:n])


def test_target_speed_measures_and_says_so(tmp_path):
    """A speed that any condensed layer gives: the layer the search likes best is chosen."""
    source = make_checkpoint("qwen2_moe", tmp_path / "src")
    with pytest.raises(RequestError, match=r"can't be reached: .* \d"):
        compress.cd_moe_condense(source, batches=BATCHES, target_speed="100x")
    done = compress.cd_moe_condense(
        source, tmp_path / "out", batches=BATCHES, target_speed="1.0001x", experts=0
    )
    measured = done.plan.options["speed"]
    chosen = ",".join(str(row["layer"]) for row in done.plan.rows)
    assert measured[chosen] >= 1.0001
    assert measured["0,1,2,3"] >= 1.0001
    assert any("--target-speed 1.0001x: decode measured" in n for n in done.receipt.notes)


REFUSALS = [
    ({"finetune": 0}, "less than 1"),
    ({"finetune_lr": 1e-3}, "can't act without `--finetune`"),
    ({"finetune": 2}, "needs text beside calibration batches"),
    ({"finetune": 2, "finetune_data": "nosuch.txt"}, "`--finetune`: data spec `nosuch.txt`"),
    ({"finetune": 2, "finetune_data": "demo", "finetune_sft": "a"}, "isn't PROMPT:ANSWER"),
    ({"finetune": 2, "finetune_data": "demo", "finetune_seqlen": 9999}, "above the model's limit"),
    ({"target_speed": "fast"}, "isn't 1.3x or prefill:1.3x"),
    ({"target_speed": "0.5x"}, "isn't 1.3x or prefill:1.3x"),
    ({"target_speed": "2x", "target_bytes": 5}, "give one"),
    ({"target_speed": "2x", "mode": "prune"}, "can't act with `--mode prune`"),
]


@pytest.mark.parametrize(("options", "words"), REFUSALS, ids=lambda v: str(v)[:40])
def test_refused_in_one_line_and_nothing_written(tmp_path, options, words):
    source = make_checkpoint("qwen2_moe", tmp_path / "src")
    with pytest.raises(RequestError) as found:
        compress.cd_moe_condense(source, tmp_path / "out", batches=BATCHES, **options)
    assert words in f"{found.value.message} {found.value.hint}"
    assert "\n" not in found.value.message
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_tuning_on_answers_counts_only_them(tmp_path):
    """Prompts and answers of two columns, as in the recipe's second phase."""
    rows = [{"q": f"say {n}", "a": f"the word {n}"} for n in range(8)]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = make_checkpoint("qwen2_moe", tmp_path / "src")
    done = compress.cd_moe_condense(
        source, tmp_path / "out", batches=BATCHES, layers=1, experts=1, finetune_data=str(data),
        finetune_sft="q:a", **{**TUNED, "finetune_seqlen": 32},
    )  # fmt: skip
    receipt = done.as_dict()
    assert receipt["data"]["documents"] == 8
    assert receipt["training"]["tokens"] < 4 * 2 * 32  # samples are shorter than rows
    assert receipt["settings"]["finetune_sft"] == "q:a"


def test_a_tuning_that_diverges_names_its_own_option(text, tmp_path):
    source = make_checkpoint("qwen2_moe", tmp_path / "src")
    options = {**TUNED, "finetune": 20, "finetune_lr": 1e30}
    with pytest.raises(RunError, match=r"`--finetune`: the (loss|gradient) isn't finite") as found:
        compress.cd_moe_condense(
            source, tmp_path / "out", batches=BATCHES, layers=1, finetune_data=text, **options
        )
    assert "--finetune-lr" in found.value.hint
    assert not (tmp_path / "out").exists()
