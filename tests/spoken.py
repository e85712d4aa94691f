"""A small synthetic set of recordings: a tone for each word, in noise. Nobody speaks in it."""

import csv
import random

import numpy as np
import soundfile

WORDS = {"low": 300.0, "mid": 700.0, "high": 1400.0, "top": 2600.0}


def tone(frequency, rate, seconds=0.2):
    """A tone that swells and fades."""
    time = np.arange(int(rate * seconds)) / rate
    return 0.3 * np.sin(2 * np.pi * frequency * time) * np.hanning(len(time))


def utterance(words, rate=8000, seed=0):
    """The words' tones, a short silence between them, and noise."""
    noise = np.random.default_rng(seed)
    gap = np.zeros(int(0.06 * rate))
    parts = [part for word in words for part in (gap, tone(WORDS[word], rate))]
    samples = np.concatenate([*parts, gap])
    return (samples + 0.01 * noise.standard_normal(len(samples))).astype("f4")


def make_set(place, count=24, rate=8000, seed=0, kind="wav", visual=0, most=2):
    """Write recordings of 1 to `most` words and manifest.csv; returns the folder.

    Args:
        visual: numbers a video frame of a .npy beside each recording, 25 frames a second, in which
            the word that sounds is marked.
    """
    place.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        words = [draw.choice(list(WORDS)) for _ in range(draw.randint(1, most))]
        samples = utterance(words, rate, 1000 * seed + number)
        soundfile.write(place / f"{number:03}.{kind}", samples, rate)
        rows.append((f"{number:03}.{kind}", " ".join(words)))
        if visual:
            np.save(place / f"{number:03}.npy", _seen(words, len(samples) / rate, visual))
    with (place / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("audio", "text"), *rows])
    return place


def _seen(words, seconds, width):
    frames = max(round(25 * seconds), 2)
    seen = np.zeros((frames, width), "f4")
    for frame in range(frames):
        word = words[min(int(frame / frames * len(words)), len(words) - 1)]
        seen[frame, list(WORDS).index(word) % width] = 1.0
    return seen
