"""Strings of spoken digits for speech.py: training speakers, and one that is held out."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import soundfile

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
RATE = 8000


def make_sets(recordings: Path, place: Path, seed: int, train: int, test: int) -> None:
    """Write train/, test12/ and test3/ of one seed, each a folder with manifest.csv.

    A string is 1 or 2 (in test3/: 3) takes of one speaker, 50 to 150 ms of silence around each.
    The held-out speaker is the seed's; no take of another speaker is in the test, and none of that
    one in the training.

    Args:
        recordings: {digit}_{speaker}_{index}.wav.
        place: where the folders go.
        seed: of the strings, and the held-out speaker's number.
        train: strings to train on.
        test: strings in each of the two tests.
    """
    out = SPEAKERS[seed % len(SPEAKERS)]
    others = [speaker for speaker in SPEAKERS if speaker != out]
    takes = {speaker: _takes(recordings, speaker) for speaker in SPEAKERS}
    for number, (name, count, lengths, speakers) in enumerate(
        (
            ("train", train, (1, 2), others),
            ("test12", test, (1, 2), [out]),
            ("test3", test, (3,), [out]),
        )
    ):
        draw = np.random.Generator(np.random.Philox(key=[seed, number]))
        _write(place / name, count, lengths, speakers, takes, draw)


def _takes(recordings: Path, speaker: str) -> list[tuple[str, np.ndarray]]:
    found = []
    for path in sorted(recordings.glob(f"*_{speaker}_*.wav")):
        samples, rate = soundfile.read(path, dtype="float32")
        assert rate == RATE
        found.append((WORDS[int(path.name.partition("_")[0])], samples))
    assert len(found) == 100, f"{recordings} has {len(found)} takes of {speaker}"
    return found


def _write(place, count, lengths, speakers, takes, draw) -> None:
    if (place / "manifest.csv").is_file():
        return
    place.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        own = takes[speakers[draw.integers(len(speakers))]]
        words, parts = [], [_silence(draw)]
        for _ in range(lengths[draw.integers(len(lengths))]):
            word, samples = own[draw.integers(len(own))]
            words.append(word)
            parts += [samples, _silence(draw)]
        soundfile.write(place / f"{number:04}.wav", np.concatenate(parts), RATE, subtype="PCM_16")
        rows.append((f"{number:04}.wav", " ".join(words)))
    with (place / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("audio", "text"), *rows])


def _silence(draw: np.random.Generator) -> np.ndarray:
    return np.zeros(int(RATE * draw.uniform(0.05, 0.15)), np.float32)
