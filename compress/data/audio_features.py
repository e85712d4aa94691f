"""Log-mel features of recordings, made once and kept on the disk by content.

A set's key is the SHA-256 of every file's bytes, of its visual features, and of how features are
made: the extractor's own settings, the rate, the package's version. So a changed file or setting
never meets old features, and names and transcripts don't matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.data.audio import Recording
from compress.data.audio_files import Hearing, decode
from compress.errors import RequestError, RunError
from compress.progress import Progress, silent

_VERSION = 1  # raised with every change of what is stored
_LEAST_FRAMES = 2  # the extractor normalises by the deviation over frames


class FeatureStore:
    """Features of a set of recordings, read by number through a memory map.

    Attributes:
        width: features a frame.
        seconds: of audio in all.
        digest: "sha256:…" of the audio and how it was read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        self.width: int = meta["width"]
        self.seconds: float = meta["seconds"]
        self.digest: str = meta["digest"]
        self.ends = np.load(directory / "ends.npy")
        self._frames: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ends) - 1

    def frames(self, number: int) -> int:
        """Return the frames of a recording."""
        return int(self.ends[number + 1] - self.ends[number])

    def __getitem__(self, number: int) -> np.ndarray:
        """Return the features of a recording, float32 [frames, width]."""
        if self._frames is None:
            shape = (int(self.ends[-1]), self.width)
            self._frames = np.memmap(self.directory / "frames.bin", "<f4", "r", shape=shape)
        return np.array(self._frames[self.ends[number] : self.ends[number + 1]])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frames": None}


def log_mel(samples: np.ndarray, extractor: Any, rate: int) -> np.ndarray:
    """Return one recording's features, float32 [frames, mels], as transformers' extractor makes
    them; frames that are padding are left out.

    Args:
        samples: float32 [n].
        extractor: a feature extractor of transformers that returns `input_features`.
        rate: of the samples.
    """
    made = extractor(samples, sampling_rate=rate, return_tensors="pt", return_attention_mask=True)
    features = made["input_features"][0]
    mask = made.get("attention_mask")
    if mask is not None:
        features = features[: int(mask[0].sum())]
    return np.ascontiguousarray(features.numpy(), np.float32)


def join_visual(features: np.ndarray, visual: np.ndarray, width: int | None = None) -> np.ndarray:
    """Join video frames to log-mel frames: [T, mels] and [V, dims] to [T, mels + dims].

    Each log-mel frame takes the video frame of the same moment; visual features are brought to mean
    0 and deviation 1 over the recording, as the log-mel ones are.

    Args:
        features, visual: of one recording.
        width: columns of the result; those after the features are 0.
    """
    visual = visual.astype(np.float64)
    scaled = (visual - visual.mean(0)) / (visual.std(0) + 1e-5)
    times = ((np.arange(len(features)) + 0.5) * len(visual) / len(features)).astype(np.int64)
    joined = np.concatenate([features, scaled[times].astype(np.float32)], axis=1)
    spare = 0 if width is None else width - joined.shape[1]
    return np.pad(joined, ((0, 0), (0, spare))) if spare else joined


def read_visual(recording: Recording, width: int | None) -> np.ndarray:
    """Read a recording's visual features, [video frames, width].

    Raises:
        RequestError: no file, no matrix of finite numbers, or another width.
    """
    place = recording.visual_file()
    try:
        found = np.load(place, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RequestError(f"`{place}` is no readable .npy file of numbers") from error
    if found.ndim != 2 or not found.size or found.dtype.kind not in "fiu":
        raise RequestError(
            f"`{place}` has shape {list(found.shape)}", "[video frames, features] is needed"
        )
    if not np.isfinite(found).all():
        raise RequestError(f"`{place}` holds values that aren't finite")
    if width is not None and found.shape[1] != width:
        raise RequestError(
            f"`{place}` has {found.shape[1]} features a frame, where the others or the model have "
            f"{width}"
        )
    return found


def feature_store(
    recordings: Sequence[Recording],
    extractor: Any,
    hearing: Hearing,
    cache: Path,
    *,
    visual: int = 0,
    width: int | None = None,
    progress: Progress = silent,
) -> FeatureStore:
    """Find the features of recordings in a cache, or make and keep them there.

    Args:
        recordings: at least one.
        extractor: a feature extractor of transformers with `input_features`.
        hearing: rate and limits.
        cache: the directory below which stores lie.
        visual: how many visual features of each video frame are joined to the log-mel ones; 0 is
            none.
        width: columns of a frame, those after the features 0; None is as many as there are.
        progress: called along the way.

    Raises:
        RequestError: a recording can't be used; it is named.
        RunError: the disk is full.
    """
    how = _How(extractor, hearing, visual, width)
    key = _key(recordings, how)
    place = cache / key
    if not (place / "meta.json").is_file():
        _make(recordings, how, place, key, progress)
    return FeatureStore(place)


@dataclass(frozen=True)
class _How:
    """How features are made; see feature_store."""

    extractor: Any
    hearing: Hearing
    visual: int
    width: int | None


def _key(recordings: Sequence[Recording], how: _How) -> str:
    import transformers

    made = {
        "version": _VERSION,
        "transformers": transformers.__version__,
        "extractor": how.extractor.to_dict(),
        "hearing": asdict(how.hearing),
        "visual": how.visual,
        "width": how.width,
    }
    whole = hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode())
    for recording in recordings:
        whole.update(hashlib.sha256(recording.read()).digest())
        if how.visual:
            whole.update(hashlib.sha256(recording.visual_file().read_bytes()).digest())
    return whole.hexdigest()


def _make(
    recordings: Sequence[Recording], how: _How, place: Path, key: str, progress: Progress
) -> None:
    """Write a store beside its place, and move it there whole."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=place.parent, prefix=".partial-"))
    except OSError as error:
        raise RunError(
            f"features can't be kept in `{place.parent}`: {error.strerror}",
            "name another place by the environment variable COMPRESS_CACHE",
        ) from error
    try:
        _write(recordings, how, partial, key, progress)
        with contextlib.suppress(OSError):  # another process was faster with the same bytes
            os.rename(partial, place)
    except OSError as error:
        raise RunError(f"features can't be written: {error.strerror}", "free some space") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    recordings: Sequence[Recording], how: _How, place: Path, key: str, progress: Progress
) -> None:
    ends, seconds, columns = [0], 0.0, 0
    with (place / "frames.bin").open("wb") as file:
        for number, recording in enumerate(recordings):
            progress("features", number, len(recordings), Path(recording.name).name)
            samples = decode(recording, recording.read(), how.hearing)
            features = _features(recording, samples, how)
            if how.visual:
                seen = read_visual(recording, how.visual)
                features = join_visual(features, seen, how.width)
            file.write(features.astype("<f4").tobytes())
            ends.append(ends[-1] + len(features))
            seconds += len(samples) / how.hearing.rate
            columns = features.shape[1]
    progress("features", len(recordings), len(recordings))
    np.save(place / "ends.npy", np.asarray(ends, np.int64))
    meta = {"width": columns, "seconds": seconds, "digest": f"sha256:{key}"}
    (place / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _features(recording: Recording, samples: np.ndarray, how: _How) -> np.ndarray:
    hop = int(getattr(how.extractor, "hop_length", 1))
    if len(samples) // hop < _LEAST_FRAMES:
        raise RequestError(
            f"`{recording.name}` is too short: {len(samples)} samples give no two frames",
            "leave it out",
        )
    return log_mel(samples, how.extractor, how.hearing.rate)
