"""The processor of a new speech model: log-mel features, and symbols read off the transcripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from compress.data.audio import Recording
from compress.errors import RequestError

UNITS = ("char", "word")
BLANK = "<blank>"


def make_extractor(rate: int, mels: int) -> Any:
    """Return transformers' Parakeet extractor: windows of 25 ms every 10 ms, `mels` bins."""
    from transformers import ParakeetFeatureExtractor

    window = rate // 40
    return ParakeetFeatureExtractor(
        feature_size=mels,
        sampling_rate=rate,
        hop_length=rate // 100,
        win_length=window,
        n_fft=1 << (window - 1).bit_length(),
    )


def make_tokenizer(texts: Iterable[str], unit: str) -> Any:
    """Return a tokenizer of the characters or words of texts, in sorted order, the blank last.

    Args:
        texts: transcripts, white space single.
        unit: of UNITS.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import ParakeetTokenizer

    symbols = sorted({s for text in texts for s in (text if unit == "char" else text.split())})
    core = Tokenizer(models.WordLevel({s: i for i, s in enumerate([*symbols, BLANK])}, BLANK))
    if unit == "char":
        core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        core.decoder = decoders.Fuse()
    else:
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return ParakeetTokenizer(
        tokenizer_object=core, pad_token=BLANK, clean_up_tokenization_spaces=False
    )


def make_processor(extractor: Any, tokenizer: Any) -> Any:
    """Return the processor of both, as it is saved beside the model."""
    from transformers import ParakeetProcessor

    return ParakeetProcessor(extractor, tokenizer, decoder_type="ctc")


def encode_texts(recordings: Sequence[Recording], tokenizer: Any, blank: int) -> list[list[int]]:
    """Return the labels of each recording.

    Raises:
        RequestError: a transcript with characters that the tokenizer doesn't have; both are named.
    """
    texts = [recording.text for recording in recordings]
    found = tokenizer(texts, add_special_tokens=False)["input_ids"]
    unknown = {blank, getattr(tokenizer, "unk_token_id", None)}
    for recording, ids in zip(recordings, found):
        if not ids or unknown & set(ids):
            missing = _missing(recording.text, tokenizer, unknown)
            raise RequestError(
                f"`{recording.name}`: its transcript has {missing}, outside the vocabulary",
                "correct the transcript, or train with it among `--data`",
            )
    return [list(ids) for ids in found]


def _missing(text: str, tokenizer: Any, unknown: set[Any]) -> str:
    """Name what the tokenizer doesn't know: characters where they tell, else words."""

    def lacks(part: str) -> bool:
        ids = tokenizer([part], add_special_tokens=False)["input_ids"][0]
        return not ids or bool(unknown & set(ids))

    words = [word for word in dict.fromkeys(text.split()) if lacks(word)]
    letters = [c for c in dict.fromkeys(text) if lacks(c)]
    known = [c for c in dict.fromkeys(text) if c not in letters and not c.isspace()]
    symbols = [s for s in tokenizer.get_vocab() if s not in tokenizer.all_special_tokens]
    single = sum(len(s) == 1 for s in symbols) > len(symbols) / 2
    if letters and (known or single):  # else symbols are words, and no letter is one
        return f"the characters {_listed(letters)}"
    return f"the words {_listed(words)}" if words else f"the characters {_listed(letters)}"


def _listed(parts: Sequence[str]) -> str:
    shown = ", ".join(f"`{part}`" for part in parts[:5])
    return shown + (f" and {len(parts) - 5} more" if len(parts) > 5 else "")
