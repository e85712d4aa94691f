"""What `--from-scratch` refuses: one line that names the file, exit code 2, nothing written."""

import csv
import json

import numpy as np
import pytest
import soundfile
from speech_models import CONFIG
from spoken import WORDS, make_set, tone, utterance

from compress.cli.main import call
from compress.errors import RequestError
from compress.lowrank.scratch import train_from_scratch

BASE = {"steps": 2, "batch_size": 2, "device": "cpu", "sample_rate": 8000}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    place = tmp_path_factory.mktemp("config") / "config.json"
    place.write_text(json.dumps(CONFIG))
    return place


@pytest.fixture
def data(tmp_path):
    return make_set(tmp_path / "data", count=4)


def rewrite(place, row, name=None, text=None):
    """Change a row of the manifest."""
    rows = list(csv.DictReader((place / "manifest.csv").open()))
    rows[row] = {"audio": name or rows[row]["audio"], "text": text or rows[row]["text"]}
    with (place / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["audio", "text"])
        writer.writeheader()
        writer.writerows(rows)


def refused(config, data, tmp_path, **options):
    out = tmp_path / "out"
    given = {**BASE, "data": str(data), **options}
    with pytest.raises(RequestError) as caught:
        train_from_scratch(config, out, **given)
    assert not out.exists()
    assert not out.with_name("out.partial").exists()
    assert "\n" not in caught.value.message
    return caught.value


def unreadable(place):
    (place / "002.wav").write_bytes(b"RIFF, says the header, and lies")


def empty(place):
    soundfile.write(place / "002.wav", np.zeros(0, "f4"), 8000)


def other_rate(place):
    soundfile.write(place / "002.wav", utterance(["low"], 16000), 16000)


def too_long(place):
    soundfile.write(place / "002.wav", tone(440.0, 8000, 31.0), 8000)


def too_many_labels(place):
    rewrite(place, 2, text=" ".join([*WORDS] * 20))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (unreadable, "can't be read as audio"),
        (empty, "is empty"),
        (other_rate, "16000 samples a second, and the model takes 8000"),
        (too_long, "lasts 31.0 s, the limit is 30 s"),
        (too_many_labels, "its 80 labels need 80 frames, and the model makes"),
    ],
)
def test_a_recording_that_cannot_be_used_is_named(config, data, tmp_path, fault, said):
    fault(data)
    error = refused(config, data, tmp_path, tokenizer="word")
    assert "002.wav" in error.message
    assert said in error.message
    assert error.hint


def test_resampling_and_leaving_out_are_asked_for(config, data, tmp_path):
    other_rate(data)
    rewrite(data, 1, text=" ".join([*WORDS] * 20))
    found = train_from_scratch(
        config, tmp_path / "out", **BASE, data=str(data), tokenizer="word", resample=True,
        drop_short=True,
    ).as_dict()  # fmt: skip
    assert found["data"]["recordings"] == 3
    assert found["data"]["too_short"] == 1
    assert any("1 of 4 recordings were too short" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("unit", "text", "named"),
    [
        ("char", "lów", "the characters `ó`"),
        ("char", "LOW", "the characters `L`, `O`, `W`"),
        ("word", "low lower", "the words `lower`"),
    ],
)
@pytest.mark.parametrize("option", ["valid", "wer"])
def test_what_the_vocabulary_lacks_is_named(config, data, tmp_path, unit, text, named, option):
    other = make_set(tmp_path / "other", count=2, seed=3)
    rewrite(other, 1, text=text)
    rewrite(data, 0, text="low mid high top")
    error = refused(config, data, tmp_path, tokenizer=unit, **{option: str(other)})
    assert "001.wav" in error.message
    assert f"{named}, outside the vocabulary" in error.message


def test_a_tokenizer_of_other_symbols_is_told_of_the_first(config, data, tmp_path):
    from compress.lowrank.scratch.tokens import make_tokenizer

    make_tokenizer(["low mid"], "word").save_pretrained(tmp_path / "tokens")
    rewrite(data, 0, text="low mid")
    rewrite(data, 1, text="mid top high")
    error = refused(config, data, tmp_path, tokenizer=str(tmp_path / "tokens"))
    assert "001.wav" in error.message
    assert "`top`, `high`" in error.message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank_ratio": 0.0}, "`--rank-ratio 0` is outside (0, 1]"),
        ({"rank_ratio": 1.5}, "`--rank-ratio 1.5` is outside (0, 1]"),
        ({"factor_init": "svd2"}, "`--init svd2` isn't known"),
        ({"factor_decay": "l1"}, "`--factor-decay l1` isn't known"),
        ({"rank_schedule": "rising"}, "is neither a schedule nor shares"),
        ({"rank_slope": 0.5}, "can't act with `--rank-schedule uniform`"),
        ({"rank_schedule": "0.5,0.5,0.5"}, "has 3 shares, and the model 2 blocks"),
        ({"include": ["atention"]}, "matches no layer of this model"),
        ({"dense": True, "rank_schedule": "linear-up"}, "`--dense` has no factors"),
        ({"steps": None}, "no length of the run"),
        ({"ppl": "x.txt"}, "`--ppl` is about text"),
        ({"visual": True}, "has no visual features"),
        ({"optimizer": "adam-mini"}, "knows language models alone"),
        ({"mels": 50}, "50 log-mel bins aren't a multiple"),
        ({"max_seconds": 0.1}, "the limit is 0.1 s"),
        ({"preset": "conformer-tiny"}, "a model and `--preset` are both named"),
    ],
)
def test_what_cannot_be_meant(config, data, tmp_path, options, said):
    assert said in refused(config, data, tmp_path, **options).message


def test_a_model_that_does_not_hear_takes_no_speech(tmp_path, data):
    llama = {"model_type": "llama", "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(llama))
    error = refused(tmp_path / "config.json", data, tmp_path, wer=str(data))
    assert "`--wer` is about speech" in error.message


def test_the_command_says_it_in_one_line(config, data, tmp_path, capsys):
    too_long(data)
    line = f"lowrank-svd {config} --from-scratch --data {data} --sample-rate 8000 --steps 2"
    code = call([*line.split(), "-o", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert code == 2
    assert "lasts 31.0 s" in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()
    assert call([*line.split(), "--calib", "demo", "-o", str(tmp_path / "out")]) == 2
    assert "`--calib` can't act with `--from-scratch`" in capsys.readouterr().err
    assert call(["lowrank-svd", str(config), "--init", "svd"]) == 2
    assert "`--from-scratch` alone" in capsys.readouterr().err
