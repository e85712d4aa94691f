"""The commands as a user runs them: start, output, receipt, screen."""

import json
import shutil

import pytest
import torch
import transformers
from click.testing import CliRunner

import tiny_models
from compress.checkpoints.source import open_source
from compress.reports import validate
from compress.training import display
from compress.training.command import train_meap, train_mixln, train_spam
from compress.training.display import read_metrics


def receipt_of(place):
    found = json.loads((place / "receipt.json").read_text())
    assert validate.check(found) == []
    return found


def test_a_random_start_gives_a_stock_checkpoint(config, options, text, tmp_path):
    place, said, seen = tmp_path / "out", [], []
    progress = lambda task, done, total, note="": seen.append((task, done, total, note))
    done = train_spam(
        config, place, say=said.append, progress=progress,
        ppl=(str(text.with_name("valid.txt")),), **options,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(place)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not hasattr(model.config, "quantization_config")
    assert model.config.use_cache
    assert transformers.AutoTokenizer.from_pretrained(place).eos_token == "</s>"
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False).shape[1] > 2
    assert {p.name for p in place.iterdir()} >= {
        "config.json", "model.safetensors", "metrics.jsonl", "loss.png", "receipt.json",
        "tokenizer.json", "items.json",
    }  # fmt: skip
    assert (place / "loss.png").read_bytes()[:4] == b"\x89PNG"
    found = receipt_of(place)
    assert found["command"] == "train-spam"
    assert "before" not in found
    assert found["after"]["parameters"] == model.num_parameters()
    assert found["after"]["perplexity"]
    entry = found["training"]
    assert (entry["steps"], entry["tokens"]) == (6, 6 * 4 * 24)
    assert entry["loss"]["value"] == pytest.approx(done.losses[-1][1])
    assert entry["optimizer_state_bytes"] >= 8 * model.num_parameters()
    assert "optimizer_kernels" not in entry
    assert found["data"]["documents"] == 40
    assert found["data"]["digest"].startswith("sha256:")
    assert ("train", 6, 6) in [call[:3] for call in seen]
    assert any("loss" in call[3] and "tokens/s" in call[3] for call in seen)
    assert said[0].startswith("model")
    assert "norm clipped to 1" in said[1]
    shown = done.render()
    assert "training loss" in shown
    assert "loss by step" in shown
    assert f"{place} loads with AutoModelForCausalLM.from_pretrained" in " ".join(shown.split())
    assert done.as_dict() == found


def test_training_goes_on_from_weights(tmp_path, options, text):
    source = tiny_models.make_checkpoint("qwen3", tmp_path / "source", dtype=torch.bfloat16)
    place = tmp_path / "out"
    ppl = (str(text.with_name("valid.txt")),)
    train_spam(source, place, ppl=ppl, **{**options, "lr": 1e-3})
    found = receipt_of(place)
    assert set(found["before"]) == set(found["after"]) == {
        "parameters", "nonzero", "bytes", "perplexity",
    }  # fmt: skip
    assert found["comparison"]["perplexity"][ppl[0]]["difference"] < 0
    assert open_source(place).dtype == torch.bfloat16  # as it was on disk
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (place / name).read_bytes() == (source / name).read_bytes()


def test_a_config_file_a_preset_and_bytes(config, options, tmp_path):
    file = tmp_path / "my.json"
    shutil.copyfile(config / "config.json", file)
    config_file = {**options, "tokenizer": str(config), "steps": 1}
    train_spam(file, tmp_path / "one", **config_file)
    train_spam(config, tmp_path / "two", **{**options, "steps": 1})
    one, two = (receipt_of(tmp_path / name) for name in ("one", "two"))
    assert one["model"]["digest"] == two["model"]["digest"]
    assert one["training"]["loss"] == two["training"]["loss"]
    train_spam(None, tmp_path / "three", preset="llama-9m", tokenizer="bytes",
               **{**options, "steps": 1})  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "three")
    assert (model.config.hidden_size, model.config.vocab_size) == (128, 320)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "three")
    assert tokenizer.decode(tokenizer("née 𝄞\n")["input_ids"]) == "née 𝄞\n"


def test_a_config_without_tokenizer_or_with_weights_elsewhere(config, options, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copyfile(config / "config.json", bare / "config.json")
    train_spam(bare, tmp_path / "out", tokenizer=str(config), **{**options, "steps": 1})
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_the_start_comes_from_the_seed_alone(config, options, tmp_path):
    from compress.training.initial import build_model, open_start
    from compress.training.settings import TrainSettings

    def start(**more):
        torch.manual_seed(more.pop("noise", 0))
        settings = TrainSettings.of_door("train-spam", {**options, **more})
        return build_model(open_start(config, settings), settings)

    plain = start(noise=1)
    same = start(noise=2)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), same.parameters()))
    other = start(seed=1)
    assert not torch.equal(plain.lm_head.weight, other.lm_head.weight)
    scaled, wide = start(init="scaled"), start(embed_std=0.632)
    for name, weight in scaled.named_parameters():
        factor = 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0  # 2 blocks
        assert torch.allclose(weight, factor * plain.get_parameter(name)), name
    assert float(wide.get_input_embeddings().weight.std()) == pytest.approx(0.632, rel=0.05)
    assert torch.equal(wide.lm_head.weight, plain.lm_head.weight)


@pytest.mark.parametrize("source", ["fresh", "trained"])
def test_meap_brings_its_mask_token(source, config, options, text, tmp_path):
    model = config
    if source == "trained":
        model = tiny_models.make_checkpoint("llama", tmp_path / "source")
    place = tmp_path / "out"
    valid = str(text.with_name("valid.txt"))
    train_meap(model, place, valid=valid, eval_every=3, **options)
    entry = receipt_of(place)["training"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    assert entry["mask_token"] == {"token": "<mask>", "id": tokenizer.mask_token_id,
                                   "origin": "new"}  # fmt: skip
    assert entry["mask_ratio"] == 0.15
    loaded = transformers.AutoModelForCausalLM.from_pretrained(place)
    assert loaded.get_input_embeddings().weight.shape[0] == 128  # there was room
    assert tokenizer.mask_token_id in loaded.generation_config.suppress_tokens
    logs = [e for e in read_metrics(place / "metrics.jsonl") if "valid_loss" in e]
    assert [e["step"] for e in logs] == [3, 6]
    assert all("valid_masked_loss" in e for e in logs)
    assert set(entry["valid"]) == {"valid", "valid_masked"}
    assert entry["valid"]["valid"]["value"] == pytest.approx(logs[-1]["valid_loss"])


def test_validation_is_the_mean_over_every_label(config, options, text, tmp_path):
    place = tmp_path / "out"
    valid = text.with_name("valid.txt")
    train_spam(config, place, valid=str(valid), **options)
    entry = receipt_of(place)["training"]["valid"]["valid"]
    model = transformers.AutoModelForCausalLM.from_pretrained(place)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    ids = torch.tensor([*tokenizer(valid.read_text())["input_ids"], tokenizer.eos_token_id])
    total = count = 0
    for first in range(0, len(ids) - 24, 24):
        logits = model(ids[None, first : first + 24]).logits[0]
        losses = torch.nn.functional.cross_entropy(
            logits, ids[first + 1 : first + 25], reduction="none"
        )
        total, count = total + losses.sum().item(), count + len(losses)
    assert entry["tokens"] == count
    assert entry["value"] == pytest.approx(total / count, rel=1e-5)
    assert entry["stderr"] > 0


def test_fine_tuning_on_answers(questions, options, tmp_path):
    source = tiny_models.make_checkpoint("llama", tmp_path / "source")
    own = {**options, "data": str(questions), "seqlen": 60, "steps": 3}
    train_meap(source, tmp_path / "out", sft="q:a", min_response=12, **own)
    entry = receipt_of(tmp_path / "out")["training"]
    assert entry["mask_ratio"] == 0.10
    assert entry["tokens"] < 3 * 4 * 60  # padding isn't counted


@pytest.mark.parametrize(
    "more",
    [
        {"separate_documents": True},
        {"gradient_checkpointing": True},
        {"precision": "bf16", "steps": 1},
        {"precision": "pure-bf16", "steps": 1},
        {"schedule": "wsd", "warmup": 2.0},
        {"objective": "meap", "p_schedule": "anneal", "mask_special": True},
        {"dtype": "float16"},
    ],
    ids=lambda more: next(iter(more)),
)
def test_variants(more, config, options, tmp_path):
    place = tmp_path / "out"
    done = train_spam(config, place, **{**options, **more})
    assert all(loss == loss for _, loss in done.losses)
    wanted = {"pure-bf16": torch.bfloat16}.get(more.get("precision"), torch.float32)
    if more.get("dtype"):
        wanted = torch.float16
    assert open_source(place).dtype == wanted


def test_gradient_checkpointing_changes_no_loss(config, options, tmp_path):
    plain = train_spam(config, tmp_path / "a", **options)
    saved = train_spam(config, tmp_path / "b", gradient_checkpointing=True, **options)
    assert plain.losses == saved.losses


@pytest.mark.parametrize("arch", ["gpt2", "gpt_neox", "mistral", "mixtral", "opt"])
def test_families(arch, options, tmp_path):
    source = tiny_models.make_checkpoint(arch, tmp_path / "source")
    train_spam(source, tmp_path / "out", **{**options, "steps": 2, "lr": 1e-3})
    before = transformers.AutoModelForCausalLM.from_pretrained(source)
    after = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert before.state_dict().keys() == after.state_dict().keys()
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters()))


@pytest.mark.parametrize("norm", ["mix", "lns"])
def test_norms_are_placed_and_folded(norm, config, options, tmp_path):
    place = tmp_path / "out"
    train_mixln(config, place, norm=norm, post_fraction=0.5 if norm == "mix" else None, **options)
    entry = receipt_of(place)["training"]["norms"]
    assert entry["layers"] == (["post", "pre"] if norm == "mix" else ["lns", "lns"])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(place)
    assert hasattr(loaded.config, "quantization_config") == (norm == "mix")


def test_what_may_go_wrong_is_said_at_the_start(config, options, tmp_path):
    said = []
    more = {"norm": "mix", "post_fraction": 0.4, "quantise": "4", "inject_spikes": "layer"}
    train_mixln(config, tmp_path / "out", say=said.append, **{**options, "steps": 1}, **more)
    head = " ".join(" ".join(said).split())
    assert "0.4 of 2 layers is less than one: all stay pre-norm" in head
    assert "14 layers in 4 bits" in head
    assert "spikes put in: layer" in head
    assert "less than one" in receipt_of(tmp_path / "out")["notes"][0]


def test_a_used_output_is_refused_then_replaced(config, options, tmp_path):
    place = tmp_path / "out"
    place.mkdir()
    (place / "mine.txt").write_text("keep")
    own = {**options, "steps": 1}
    with pytest.raises(Exception, match="not empty"):
        train_spam(config, place, **own)
    assert (place / "mine.txt").read_text() == "keep"
    train_spam(config, place, overwrite=True, **own)
    assert not (place / "mine.txt").exists()


def test_tensorboard_gets_the_logs_where_it_is_installed(config, options, tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, directory, purge_step):
            self.place = display.Path(directory)
            self.place.mkdir()
            assert purge_step == 0

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            (self.place / "events").write_text("events")

    module = type("M", (), {"SummaryWriter": Writer})
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", module)
    done = train_spam(config, tmp_path / "out", **options)
    losses = [(step, value) for name, value, step in written if name == "train/loss"]
    assert losses == list(done.losses)
    assert (tmp_path / "out" / "tensorboard" / "events").is_file()


def test_the_command_line(config, text, tmp_path):
    from compress.cli.train_meap import command

    arguments = [str(config), "-o", str(tmp_path / "out"), "--data", str(text), "--steps", "2",
                 "--batch-size", "2", "--seqlen", "16", "--device", "cpu", "--json",
                 "--optimizer", "adamw", "--betas", "0.9", "0.99"]  # fmt: skip
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found == receipt_of(tmp_path / "out")
    assert found["settings"]["betas"] == [0.9, 0.99]
    assert "plan" in done.stderr
    assert "seed 0" in done.stderr


def test_the_help_fits_the_screen():
    from compress.cli.train_mixln import command

    shown = CliRunner().invoke(command, ["--help"], terminal_width=80).output
    assert max(map(len, shown.splitlines())) <= 80
    for heading in ("Text", "Length and schedule", "Objective", "Optimizer", "Norms and start"):
        assert f"{heading}:" in shown


def test_every_loss_is_logged_beside_its_validation(config, options, text, tmp_path):
    valid = str(text.with_name("valid.txt"))
    own = {**options, "eval_every": 2, "log_every": 2, "save_every": 3}
    train_spam(config, tmp_path / "out", valid=valid, **own)
    logs = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [e["step"] for e in logs if "valid_loss" in e] == [2, 4, 6]
    assert [e["step"] for e in logs if "loss" in e] == [2, 3, 4, 6]  # 3 is saved


def test_the_pace_is_of_training_alone(tmp_path, monkeypatch):
    """Eight seconds of validation and four of saving in ten of training, in all of two logs."""
    now = [0.0]
    monkeypatch.setattr(display.time, "perf_counter", lambda: now[0])
    shown = display.Display(tmp_path / "metrics.jsonl", tokens_a_step=100)
    state = type("S", (), {"is_world_process_zero": True, "global_step": 0, "max_steps": 10})()
    control = type("C", (), {"should_save": True, "should_log": False})()
    shown.on_train_begin(None, state, control)
    logs = {"loss": 1.0, "learning_rate": 0.1}
    for _ in range(2):
        state.global_step += 5
        now[0] += 5
        shown.on_step_end(None, state, control)
        with shown.paused():
            now[0] += 4
        shown.on_log(None, state, control, logs)
        now[0] += 2
        shown.on_save(None, state, control)
    assert [e["tokens_per_s"] for e in read_metrics(tmp_path / "metrics.jsonl")] == [100.0, 100.0]
    assert shown.tokens_per_s == 100.0
    shown.close()


def test_sparse_momentum_takes_less_memory(config, options, tmp_path):
    """At density 0.25 the hidden matrices' moments are a quarter; tables and norms stay whole."""
    found = {}
    for density in (1.0, 0.25):
        place = tmp_path / str(density)
        train_spam(config, place, **{**options, "optimizer": "spam", "density": density})
        entry = receipt_of(place)["training"]
        found[density] = entry["optimizer_state_bytes"]
        assert entry["optimizer_kernels"] in ("native", "fused", "plain")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "1.0")
    hidden = sum(p.numel() for n, p in model.named_parameters() if "_proj" in n)
    assert found[1.0] == pytest.approx(8 * model.num_parameters(), rel=0.01)
    assert found[1.0] - found[0.25] == pytest.approx(0.75 * 8 * hidden, rel=0.02)
