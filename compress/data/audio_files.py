"""Audio files as samples: WAV, FLAC and what else libsndfile reads, one channel, one rate."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np

from compress.data.audio import Recording
from compress.errors import RequestError

LIMIT_SECONDS = 30.0
"""The longest recording by default: attention costs the square of its length."""


@dataclass(frozen=True)
class Hearing:
    """How recordings are to be read.

    Attributes:
        rate: samples a second that the model wants.
        resample: whether other rates are converted, or refused.
        limit_seconds: the longest recording that is taken.
    """

    rate: int
    resample: bool = False
    limit_seconds: float = LIMIT_SECONDS


def decode(recording: Recording, content: bytes, hearing: Hearing) -> np.ndarray:
    """Decode one audio file.

    Args:
        recording: whose file it is, for messages.
        content: the file's bytes.
        hearing: what is wanted.

    Returns:
        float32 [samples] in [-1, 1] at `hearing.rate`; the mean of the channels.

    Raises:
        RequestError: an unknown format, no samples, a sample that isn't finite, longer than the
            limit, or of another rate where `resample` is off.
    """
    import soundfile

    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError) as error:
        raise RequestError(
            f"`{recording.name}` can't be read as audio: {_line(error)}",
            "WAV and FLAC are read, and what else libsndfile knows",
        ) from error
    if not len(samples):
        raise RequestError(f"`{recording.name}` is empty: it has no samples", "leave it out")
    seconds = len(samples) / rate
    if seconds > hearing.limit_seconds:
        raise RequestError(
            f"`{recording.name}` lasts {seconds:.1f} s, the limit is {hearing.limit_seconds:g} s",
            "cut it, or raise the limit: `--max-seconds`",
        )
    if rate != hearing.rate and not hearing.resample:
        raise RequestError(
            f"`{recording.name}` has {rate} samples a second, and the model takes {hearing.rate}",
            f"add `--resample`, or train a model for that rate: `--sample-rate {rate}`",
        )
    if not np.isfinite(samples).all():
        raise RequestError(f"`{recording.name}` holds samples that aren't finite", "leave it out")
    return resample(samples.mean(axis=1), rate, hearing.rate)


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Convert samples [n] from one rate to another, by scipy's polyphase filter."""
    if rate == wanted:
        return np.ascontiguousarray(samples, np.float32)
    from scipy.signal import resample_poly

    common = math.gcd(rate, wanted)
    return resample_poly(samples, wanted // common, rate // common).astype(np.float32)


def _line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.rpartition(": ")[2].rstrip(". ")[:120]
