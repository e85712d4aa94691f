"""Recordings: manifests, audio columns, formats, rates, and features kept by content."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from spoken import make_set, tone, utterance

from compress.data.audio import Recording, read_recordings
from compress.data.audio_features import FeatureStore, feature_store, join_visual, log_mel
from compress.data.audio_files import Hearing, decode
from compress.errors import RequestError

HEARING = Hearing(8000)


@pytest.fixture(scope="module")
def extractor():
    from transformers import ParakeetFeatureExtractor

    return ParakeetFeatureExtractor(
        feature_size=20, sampling_rate=8000, hop_length=80, win_length=200, n_fft=256
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set"), count=4)


def wav_bytes(samples, rate=8000, kind="WAV"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def test_a_folder_lists_its_manifest(place):
    found = read_recordings(str(place))
    rows = list(csv.DictReader((place / "manifest.csv").open()))
    assert [r.text for r in found] == [row["text"] for row in rows]
    assert [r.path for r in found] == [place / row["audio"] for row in rows]
    assert read_recordings(str(place / "manifest.csv")) == found
    assert read_recordings(str(place), limit=2) == found[:2]


def test_jsonl_other_names_and_a_chosen_column(place, tmp_path):
    rows = [{"audio_filepath": str(place / "000.wav"), "said": " a  b ", "transcript": "c"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert read_recordings(str(tmp_path))[0].text == "c"
    assert read_recordings(f"{tmp_path}:said")[0].text == "a b"


def test_roles_read_their_split(place, tmp_path):
    for split, text in (("train", "one"), ("test", "two")):
        (tmp_path / f"{split}.csv").write_text(f"audio,text\n{place / '000.wav'},{text}\n")
    assert read_recordings(str(tmp_path))[0].text == "one"
    assert read_recordings(str(tmp_path), "evaluation")[0].text == "two"


def test_audio_columns_of_datasets_hold_the_files_themselves(place, tmp_path):
    import datasets

    rows = {"audio": [str(place / "000.wav"), str(place / "001.wav")], "text": ["x", "y"]}
    made = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    made = made.map(
        lambda row: {"audio": {"bytes": Path(row["audio"]["path"]).read_bytes(), "path": None}}
    )
    made.save_to_disk(str(tmp_path / "saved"))
    made.to_parquet(str(tmp_path / "table.parquet"))
    for spec in (tmp_path / "saved", tmp_path / "table.parquet"):
        found = read_recordings(str(spec))
        assert [r.text for r in found] == ["x", "y"]
        assert [r.read() for r in found] == [
            (place / name).read_bytes() for name in ("000.wav", "001.wav")
        ]


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_samples_come_back(kind):
    samples = utterance(["low", "top"])
    found = decode(Recording("x", "x"), wav_bytes(samples, kind=kind), HEARING)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, samples, atol=2**-15)


def test_channels_are_averaged():
    left, right = utterance(["low"]), utterance(["top"])
    both = wav_bytes(np.stack([left, right], 1))
    found = decode(Recording("x", "x"), both, HEARING)
    np.testing.assert_allclose(found, (left + right) / 2, atol=2**-14)


def test_resampling_keeps_a_tone_and_its_length():
    content = wav_bytes(tone(440.0, 44100, 1.0), 44100)
    found = decode(Recording("x", "x"), content, Hearing(8000, resample=True))
    assert len(found) == 8000
    spectrum = np.abs(np.fft.rfft(found))
    assert spectrum.argmax() == 440
    np.testing.assert_allclose(found[1000:-1000], tone(440.0, 8000, 1.0)[1000:-1000], atol=5e-3)


@pytest.mark.parametrize(
    ("content", "hearing", "said"),
    [
        (b"no audio at all", HEARING, "can't be read as audio"),
        (wav_bytes(np.zeros(0)), HEARING, "is empty"),
        (wav_bytes(np.zeros(8000), 16000), HEARING, "16000 samples a second"),
        (wav_bytes(np.zeros(16001)), Hearing(8000, limit_seconds=2.0), "lasts 2.0 s, the limit"),
    ],
)
def test_what_cannot_be_heard_is_named(content, hearing, said):
    with pytest.raises(RequestError, match=r"`the\.wav`") as caught:
        decode(Recording("the.wav", "x"), content, hearing)
    assert said in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("audio,text\nno.wav,hello\n", "row 1: there is no file"),
        ("audio,text\n000.wav,\n", "row 1: the transcript is empty"),
        ("sound,text\n000.wav,a\n", "has no column of audio"),
        ("audio,words\n000.wav,a\n", "has no column of text"),
    ],
)
def test_a_bad_manifest_is_named(place, tmp_path, manifest, said):
    (tmp_path / "000.wav").write_bytes((place / "000.wav").read_bytes())
    (tmp_path / "manifest.csv").write_text(manifest)
    with pytest.raises(RequestError) as caught:
        read_recordings(str(tmp_path))
    assert said in caught.value.message
    assert "manifest.csv" in caught.value.message


def test_no_manifest_and_no_path(tmp_path):
    with pytest.raises(RequestError, match="has no manifest"):
        read_recordings(str(tmp_path))
    with pytest.raises(RequestError, match="is no path"):
        read_recordings("librispeech")


def test_features_are_the_extractor_s_own(place, extractor, tmp_path):
    recordings = read_recordings(str(place))
    store = feature_store(recordings, extractor, HEARING, tmp_path)
    waves = [soundfile.read(r.path, dtype="float32")[0] for r in recordings]
    batch = extractor(waves, sampling_rate=8000, return_tensors="pt")
    for number in range(len(recordings)):
        own = batch["input_features"][number][batch["attention_mask"][number]]
        assert store.frames(number) == len(own) == len(waves[number]) // 80
        np.testing.assert_allclose(store[number], own, atol=2e-5)
    assert store.seconds == pytest.approx(sum(map(len, waves)) / 8000)


def test_features_are_kept_by_content(place, extractor, tmp_path, monkeypatch):
    recordings = read_recordings(str(place))
    first = feature_store(recordings, extractor, HEARING, tmp_path)
    monkeypatch.setattr("compress.data.audio_features.log_mel", None)  # nothing is made again
    again = [Recording("other name", "other text", r.path) for r in recordings]
    second = feature_store(again, extractor, HEARING, tmp_path)
    assert second.digest == first.digest
    assert isinstance(second, FeatureStore)
    changed = [Recording("x", "x", None, wav_bytes(utterance(["low"]))), *recordings[1:]]
    with pytest.raises(TypeError):  # another file: made again, by what is None now
        feature_store(changed, extractor, HEARING, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [first.digest.removeprefix("sha256:")]


def test_a_recording_of_one_frame_is_refused(extractor, tmp_path):
    short = Recording("short.wav", "x", None, wav_bytes(np.zeros(100)))
    with pytest.raises(RequestError, match=r"`short.wav` is too short"):
        feature_store([short], extractor, HEARING, tmp_path)


def test_visual_features_are_joined_by_time(extractor, tmp_path):
    seen = np.arange(10.0)[:, None] * [1.0, -2.0]
    joined = join_visual(np.zeros((40, 3), "f4"), seen)
    assert joined.shape == (40, 5)
    scaled = (np.arange(10) - 4.5) / np.std(np.arange(10))
    np.testing.assert_allclose(joined[:, 3], np.repeat(scaled, 4), atol=1e-4)
    np.testing.assert_allclose(joined[:, 4], -joined[:, 3], atol=1e-4)
    recordings = read_recordings(str(make_set(tmp_path / "set", count=2, visual=3)))
    store = feature_store(recordings, extractor, HEARING, tmp_path / "kept", visual=3)
    assert store.width == 23
    sound = log_mel(decode(recordings[0], recordings[0].read(), HEARING), extractor, 8000)
    np.testing.assert_array_equal(store[0][:, :20], sound)
    padded = feature_store(recordings, extractor, HEARING, tmp_path / "kept", visual=3, width=24)
    np.testing.assert_array_equal(padded[0][:, :23], store[0])
    assert not padded[0][:, 23].any()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.zeros(3), "has shape"),
        (np.full((4, 2), np.nan), "aren't finite"),
        (np.zeros((4, 5)), "has 5 features a frame"),
        (None, "has no visual features"),
    ],
)
def test_bad_visual_features_are_named(extractor, tmp_path, content, said):
    recordings = read_recordings(str(make_set(tmp_path / "set", count=2, visual=3)))
    place = tmp_path / "set" / "001.npy"
    place.unlink()
    if content is not None:
        np.save(place, content)
    with pytest.raises(RequestError, match="001") as caught:
        feature_store(recordings, extractor, HEARING, tmp_path / "kept", visual=3)
    assert said in caught.value.message
