"""Text without sense, as the bad ends of a comparison of calibration data.

Dots alone, and random letters and digits: what a pruner makes of them shows how much the choice of
text can matter at all (arXiv:2410.07461 calls them `ellipses` and `random`).
"""

from __future__ import annotations

import string

import numpy as np

DOCUMENTS = 4096
CHARACTERS = 4096  # of one document
_ALPHABET = np.frombuffer((string.ascii_letters + string.digits).encode(), np.uint8)


def made_documents(kind: str, limit: int | None = None) -> list[str]:
    """Return documents of "dots" or "characters", the same ones each time.

    Args:
        kind: what they are made of.
        limit: at most so many leading documents.
    """
    count = DOCUMENTS if limit is None else min(limit, DOCUMENTS)
    if kind == "dots":
        return ["." * CHARACTERS] * count
    texts = []
    for number in range(count):
        words = np.random.Philox(key=[0, number]).random_raw(CHARACTERS)
        texts.append(_ALPHABET[words % np.uint64(len(_ALPHABET))].tobytes().decode())
    return texts
