"""Speech from scratch: it learns, resumes to the bit, loads plainly; what it can't use is named."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from speech_models import CONFIG, tiny_conformer
from spoken import make_set

import compress
from compress.lowrank.scratch import train_from_scratch
from compress.lowrank.scratch.rows import GroupedPositions, SpeechCollator, frames_needed

TOOL = (sys.executable, "-m", "compress")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A directory with a config and the extractor of 20 bins at 8 kHz."""
    from compress.lowrank.scratch.tokens import make_extractor, make_processor, make_tokenizer

    place = tmp_path_factory.mktemp("config")
    (place / "config.json").write_text(json.dumps(CONFIG))
    make_processor(make_extractor(8000, 20), make_tokenizer(["x"], "char")).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """train, test: tones for words; visual: the same with features by video frame."""
    place = tmp_path_factory.mktemp("sets")
    make_set(place / "train", count=40, seed=0)
    make_set(place / "test", count=12, seed=1)
    make_set(place / "visual", count=10, seed=2, visual=3)
    return place


@pytest.fixture
def options(sets):
    return {
        "data": str(sets / "train"),
        "tokenizer": "word",
        "steps": 6,
        "batch_size": 4,
        "lr": 5e-3,
        "rank_ratio": 0.25,
        "log_every": 1,
        "save_every": 2,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def learned(config, sets, tmp_path_factory):
    """A model that was trained until it hears the tones."""
    out = tmp_path_factory.mktemp("learned") / "out"
    return train_from_scratch(
        config,
        out,
        data=str(sets / "train"),
        valid=str(sets / "test"),
        wer=str(sets / "test"),
        tokenizer="word",
        steps=120,
        batch_size=8,
        lr=5e-3,
        rank_ratio=0.5,
        device="cpu",
    )


def weights(place):
    from safetensors.torch import load_file

    return load_file(place / "model.safetensors")


def test_training_reduces_the_loss_and_the_model_hears(learned):
    losses = dict(learned.losses)
    first, last = losses[min(losses)], losses[max(losses)]
    assert last < first / 4
    receipt = learned.as_dict()
    assert receipt["training"]["valid"]["valid"]["value"] < first / 4
    (rate,) = receipt["after"]["wer"].values()
    assert rate["value"] < 0.2
    assert rate["utterances"] == 12
    assert receipt["training"]["objective"] == "ctc"
    entries = map(json.loads, (learned.output / "metrics.jsonl").read_text().splitlines())
    assert all(entry["update_norm"] > 0 for entry in entries if "loss" in entry)


def test_the_receipt_and_the_plan_tell_the_ranks(learned):
    receipt = learned.as_dict()
    plan = json.loads((learned.output / "plan.json").read_text())["rows"]
    stored = weights(learned.output)
    entry = receipt["training"]["lowrank"]
    assert entry["layers"] == len(plan) == 22
    assert entry["ranks"] == sum(row["rank"] for row in plan)
    thin = 0
    for row in plan:
        up, down = (stored[f"{row['module']}.{part}.weight"] for part in ("up", "down"))
        assert up.shape[:2] == (row["shape"][0], row["rank"])
        assert down.shape[:2] == (row["rank"], row["shape"][1])
        thin += up.numel() + down.numel()
    whole = sum(row["shape"][0] * row["shape"][1] for row in plan)
    assert entry["kept"] == pytest.approx(thin / whole)
    assert entry["parameters_dense"] - entry["parameters"] == whole - thin
    moments = sum(v.numel() for k, v in stored.items() if "running_" in k)  # of BatchNorm
    assert receipt["after"]["parameters"] == entry["parameters"] + moments


def test_it_loads_by_plain_auto_classes_in_a_fresh_process(learned, sets, tmp_path):
    code = f"""
import compress, soundfile, torch
from transformers import AutoModelForCTC, AutoProcessor
model = AutoModelForCTC.from_pretrained({str(learned.output)!r}).eval()
processor = AutoProcessor.from_pretrained({str(learned.output)!r})
samples, rate = soundfile.read({str(sets / "test" / "000.wav")!r}, dtype="float32")
inputs = processor.feature_extractor(samples, sampling_rate=rate, return_tensors="pt")
print(type(model.encoder.layers[0].self_attn.q_proj).__name__)
print(processor.batch_decode(model.generate(**inputs))[0])
model.save_pretrained({str(tmp_path / "again")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kind, heard = done.stdout.strip().splitlines()[-2:]
    assert kind == "LowRank"
    found = compress.evaluate(str(learned.output), wer=str(sets / "test"), limit=1)
    said = next(csv.DictReader((sets / "test" / "manifest.csv").open()))["text"]
    assert (found.as_dict()["models"][0]["wer"][str(sets / "test")]["value"] == 0) == (
        heard == said
    )
    first, second = weights(learned.output), weights(tmp_path / "again")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_it_multiplies_out_to_a_stock_checkpoint(learned, tmp_path):
    compress.export(learned.output, tmp_path / "stock", to="stock")
    code = f"""
from transformers import AutoModelForCTC
model = AutoModelForCTC.from_pretrained({str(tmp_path / "stock")!r})
print(type(model.encoder.layers[0].self_attn.q_proj).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("Linear")
    features = torch.randn(2, 40, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        thin = compress.load(learned.output)(features).logits
        whole = compress.load(tmp_path / "stock")(features).logits
    torch.testing.assert_close(thin, whole, atol=1e-4, rtol=1e-4)


def test_a_trained_recogniser_is_factored_on_recordings(learned, sets, tmp_path):
    """The methods after training calibrate and score on audio as they do on text."""
    compress.export(learned.output, tmp_path / "stock", to="stock")
    found = compress.lowrank_svd(
        tmp_path / "stock", tmp_path / "out", keep=0.9, method="whiten",
        calib=str(sets / "train"), samples=8, wer=str(sets / "test"),
    ).as_dict()  # fmt: skip
    assert found["after"]["parameters"] < found["before"]["parameters"]
    assert found["after"]["wer"].keys() == found["before"]["wer"].keys()
    assert {"difference", "p"} <= set(next(iter(found["comparison"]["wer"].values())))
    with pytest.raises(compress.errors.RequestError, match="is no path, and speech is read"):
        compress.lowrank_svd(tmp_path / "stock", tmp_path / "no", keep=0.9, calib="c4")


def test_the_calibration_batches_are_single_recordings(learned, sets):
    from compress.calibration.speech import speech_batches
    from compress.checkpoints.source import open_source

    source = open_source(learned.output)
    batches = speech_batches(source, str(sets / "train"), samples=5, seed=3)
    again = speech_batches(source, str(sets / "train"), samples=5, seed=3)
    assert [b.keys() for b in batches] == [{"input_features"}] * 5
    assert all(b["input_features"].shape[::2] == (1, 20) for b in batches)
    assert len({b["input_features"].sum().item() for b in batches}) == 5
    assert all(
        torch.equal(a["input_features"], b["input_features"]) for a, b in zip(batches, again)
    )


def test_batches_and_padding_change_no_transcript(learned, sets, monkeypatch):
    from compress.data.audio import read_recordings
    from compress.data.audio_files import Hearing
    from compress.evaluation import speech

    source = compress.checkpoints.source.open_source(learned.output)
    model, processor = source.load(), speech.open_processor(source)
    recordings = read_recordings(str(sets / "test"))
    together = speech.transcribe(model, processor, recordings, Hearing(8000))
    monkeypatch.setattr(speech, "_MOST_FRAMES", 1)
    assert speech.transcribe(model, processor, recordings, Hearing(8000)) == together
    alone = [speech._transcribe_alone(model, processor, r, Hearing(8000)) for r in recordings]
    assert alone == together


def test_frames_of_padding_are_blanks():
    from compress.evaluation.speech import best_symbols

    model = tiny_conformer(symbols=5)
    logits = torch.full((2, 10, 5), 0.0)
    logits[..., 1] = 1.0
    mask = torch.arange(40)[None] < torch.tensor([40, 17])[:, None]
    found = best_symbols(model, logits, mask)
    assert found[0].tolist() == [1] * 10
    assert found[1].tolist() == [1] * 5 + [4] * 5


@pytest.mark.parametrize("rank_ratio", [None, 1.0])
def test_a_dense_arm_is_stock_and_starts_from_the_same_weights(
    config, options, tmp_path, rank_ratio
):
    how = {"dense": True} if rank_ratio is None else {"rank_ratio": rank_ratio}
    few = {**options, "steps": 1, "lr": 1e-12, "weight_decay": 0.0, "max_grad_norm": 0.0}
    train_from_scratch(config, tmp_path / "dense", **{**few, **how})
    train_from_scratch(config, tmp_path / "thin", include=["ffn"], **few)
    assert "quantization_config" not in (tmp_path / "dense" / "config.json").read_text()
    dense, thin = weights(tmp_path / "dense"), weights(tmp_path / "thin")
    name = "encoder.layers.1.self_attn.q_proj.weight"
    torch.testing.assert_close(dense[name], thin[name], atol=1e-9, rtol=0)
    layer = "encoder.layers.1.feed_forward2.linear1"
    u, s, v = torch.linalg.svd(dense[f"{layer}.weight"].double())
    product = (thin[f"{layer}.up.weight"] @ thin[f"{layer}.down.weight"]).double()
    torch.testing.assert_close(product, u[:, :8] * s[:8] @ v[:8], atol=1e-5, rtol=1e-4)


def tensors_of(place):
    return (place / "model.safetensors").read_bytes()


def test_a_killed_run_resumes_to_the_same_bytes(config, options, sets, tmp_path):
    line = [*TOOL, "lowrank-svd", str(config), "--from-scratch", "--quiet"]
    for key, value in {**options, "steps": 24, "save_every": 4, "valid": sets / "test"}.items():
        line += [f"--{key.replace('_', '-')}", str(value)]
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    subprocess.run([*line, "-o", str(whole)], check=True)
    job = subprocess.Popen([*line, "-o", str(torn)])
    reached = tmp_path / "torn.partial" / "checkpoints" / "checkpoint-4"
    until = time.monotonic() + 120
    while not reached.is_dir() and job.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert reached.is_dir()
    assert not torn.exists()
    subprocess.run([*line, "-o", str(torn), "--resume"], check=True)
    assert tensors_of(torn) == tensors_of(whole)
    logs = [
        [(e["step"], e.get("loss"), e.get("valid_loss")) for e in map(json.loads, lines)]
        for lines in ((p / "metrics.jsonl").read_text().splitlines() for p in (torn, whole))
    ]
    assert logs[0] == logs[1]


def test_other_recordings_cannot_go_on_with_a_run(config, options, sets, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(sets / "train", data)
    out = tmp_path / "out"
    given = {**options, "data": str(data), "skip_nonfinite": 0}
    job = _interrupted(config, out, given)
    assert job is not None
    shutil.copyfile(sets / "test" / "001.wav", data / "000.wav")
    with pytest.raises(compress.errors.RequestError, match="recordings have changed"):
        train_from_scratch(config, out, **given, resume=True)


def _interrupted(config, out, given):
    """Train until the third step, then fail."""

    class Stop(Exception):
        pass

    def progress(task, done, total, note=""):
        if task == "train" and done == 3:
            raise Stop

    with pytest.raises(Stop):
        train_from_scratch(config, out, **given, progress=progress)
    return Path(f"{out}.partial") / "checkpoints" / "checkpoint-2"


def test_accumulation_changes_nothing(config, sets, tmp_path):
    """With recordings that are all the same, so that BatchNorm sees the same."""
    same = tmp_path / "same"
    same.mkdir()
    (same / "manifest.csv").write_text(
        "audio,text\n" + f"{sets / 'train' / '003.wav'},low top\n" * 4
    )
    common = {"data": str(same), "tokenizer": "word", "steps": 3, "batch_size": 4, "lr": 1e-3}
    common |= {"device": "cpu", "log_every": 1, "max_grad_norm": 0.0}
    whole = train_from_scratch(config, tmp_path / "whole", **common)
    parts = train_from_scratch(config, tmp_path / "parts", **common, micro_batch=1)
    assert parts.as_dict()["training"]["accumulation"] == 4
    for (_, a), (_, b) in zip(whole.losses, parts.losses):
        assert b == pytest.approx(a, rel=1e-3)
    a, b = (_grad_norms(tmp_path / name) for name in ("whole", "parts"))
    assert b == pytest.approx(a, rel=1e-2)


def _grad_norms(place):
    entries = map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
    return [entry["grad_norm"] for entry in entries if "grad_norm" in entry]


def test_the_order_is_a_permutation_that_groups_lengths():
    class Rows:
        def __init__(self, lengths):
            self.lengths = lengths

        def __len__(self):
            return len(self.lengths)

        def __getitem__(self, row):
            return {"number": row}

        def frames(self, row):
            return self.lengths[row]

    lengths = np.random.default_rng(0).integers(10, 500, 103).tolist()
    order = GroupedPositions(Rows(lengths), 4 * 103, 5, 8)
    placed = [order.place(p) for p in range(4 * 103)]
    for epoch in range(4):
        own = [row for row, e in placed if e == epoch]
        assert sorted(own) == list(range(103))
        assert own != sorted(own, key=lengths.__getitem__)
    batches = [[lengths[r] for r, _ in placed[i : i + 8]] for i in range(0, 8 * 51, 8)]
    waste = np.mean([1 - np.mean(batch) / max(batch) for batch in batches])
    drawn = np.random.default_rng(1).permutation(103)[:96].reshape(-1, 8)
    random = np.mean([1 - np.mean(np.take(lengths, b)) / max(np.take(lengths, b)) for b in drawn])
    assert waste < random / 2
    assert [order.place(p) for p in (200, 7, 399)] == [placed[p] for p in (200, 7, 399)]
    other = GroupedPositions(Rows(lengths), 4 * 103, 6, 8)
    assert [other.place(p) for p in range(103)] != placed[:103]


def test_a_batch_holds_features_and_labels():
    rows = [
        {"input_features": torch.ones(3, 2), "labels": torch.tensor([1])},
        {"input_features": torch.ones(5, 2), "labels": torch.tensor([2, 3])},
    ]
    batch = SpeechCollator()(rows)
    assert batch["input_features"].sum(2).tolist() == [[2, 2, 2, 0, 0], [2] * 5]
    assert batch["attention_mask"].sum(1).tolist() == [3, 5]
    assert batch["labels"].tolist() == [[1, -100], [2, 3]]


@pytest.mark.parametrize(("labels", "frames"), [([1, 2], 2), ([1, 1], 3), ([1, 1, 1, 2], 6)])
def test_the_frames_that_ctc_needs(labels, frames):
    """Below them the loss is infinite, with them it isn't."""
    logits = torch.zeros(frames, 1, 4).log_softmax(-1)
    loss = torch.nn.CTCLoss(blank=0, reduction="sum")
    target = torch.tensor([labels])
    assert frames_needed(labels) == frames
    assert torch.isfinite(loss(logits, target, [frames], [len(labels)]))
    assert torch.isinf(loss(logits[:-1], target, [frames - 1], [len(labels)]))


def test_visual_features_widen_the_input(config, options, sets, tmp_path):
    """The synthetic audio-visual set: tones, and which of them sounds as features."""
    given = {**options, "data": str(sets / "visual"), "wer": str(sets / "visual")}
    found = train_from_scratch(config, tmp_path / "out", **given, visual=True)
    model = compress.load(tmp_path / "out")
    assert model.config.encoder_config.num_mel_bins == 24  # a multiple of 4
    assert model.config.visual_features == 3
    first = found.as_dict()["after"]["wer"]
    again = compress.evaluate(str(tmp_path / "out"), wer=str(sets / "visual"))
    assert again.as_dict()["models"][0]["wer"] == first
    with pytest.raises(compress.errors.RequestError, match="no visual features"):
        compress.evaluate(str(tmp_path / "out"), wer=str(sets / "test"))


def test_a_finished_model_is_trained_on_as_it_is(learned, options, tmp_path):
    given = {**options, "steps": 2, "tokenizer": None, "rank_ratio": 0.1}
    found = train_from_scratch(learned.output, tmp_path / "out", **given)
    first, second = weights(learned.output), weights(tmp_path / "out")
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in second.items()}
    assert found.losses[0][1] < 1.0  # it had learned before
    assert any("factors already" in note for note in found.as_dict()["notes"])


def test_text_goes_by_the_same_options(tmp_path):
    (tmp_path / "text.txt").write_text("the sea was calm and grey\n" * 200)
    llama = {
        "model_type": "llama", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "max_position_embeddings": 64, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(llama))
    common = {"data": str(tmp_path / "text.txt"), "tokenizer": "bytes", "steps": 12, "seqlen": 32}
    common |= {"batch_size": 4, "lr": 1e-2, "device": "cpu", "log_every": 1}
    found = train_from_scratch(
        tmp_path / "config.json",
        tmp_path / "out",
        **common,
        rank_ratio=0.25,
        rank_schedule="linear-up",
        factor_decay="frobenius",
    )
    assert found.losses[-1][1] < found.losses[0][1] - 1
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())["rows"]
    ranks = {row["module"]: row["rank"] for row in plan}
    assert len(ranks) == 14
    assert ranks["model.layers.0.self_attn.q_proj"] < ranks["model.layers.1.self_attn.q_proj"]
    model = compress.load(tmp_path / "out")
    assert model.model.layers[1].mlp.down_proj.rank == ranks["model.layers.1.mlp.down_proj"]


def test_two_processes_train_as_one_that_accumulates(config, options, tmp_path):
    """The same batches, so the same sums: bit for bit but for BatchNorm's running moments."""
    line = ["-m", "compress", "lowrank-svd", str(config), "--from-scratch", "--quiet"]
    for key, value in {**options, "steps": 3}.items():
        line += [f"--{key.replace('_', '-')}", str(value)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    subprocess.run([*launcher, *line, "-o", str(tmp_path / "two")], check=True)
    alone = [sys.executable, *line, "--micro-batch", "2", "-o", str(tmp_path / "one")]
    subprocess.run(alone, check=True)
    receipt = json.loads((tmp_path / "two" / "receipt.json").read_text())["training"]
    assert receipt["processes"] == 2
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    own = [key for key in one if "running_" not in key and "num_batches" not in key]
    assert all(torch.equal(one[key], two[key]) for key in own)


def test_spoken_digits_are_trained_on(assets, tmp_path):
    """Real takes, of which the shortest gives a dozen frames: each fits its word."""
    takes = sorted((assets / "speech" / "recordings").glob("*_theo_*.wav"))[::4]
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    rows = [(str(path), names[int(path.name[0])]) for path in takes]
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("audio", "text"), *rows])
    found = train_from_scratch(
        None, tmp_path / "out", preset="conformer-tiny", data=str(tmp_path), tokenizer="char",
        include=["attention"], rank_ratio=0.12, steps=12, batch_size=5, log_every=1, device="cpu",
    )  # fmt: skip
    receipt = found.as_dict()
    assert receipt["data"]["recordings"] == len(takes) == 25
    assert receipt["data"]["too_short"] == 0
    assert found.losses[-1][1] < found.losses[0][1]
