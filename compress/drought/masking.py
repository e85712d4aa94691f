"""Texts that state the label: what is taken out of them before anything reads them.

A sentence that tells the monitor's own figures goes whole; other terms of the scale ("extreme
drought", "D3") become a plain word. What is left can still speak of drought.
"""

from __future__ import annotations

import re

PLACEHOLDER = "drought"
_MONITOR = re.compile(
    r"\bdrought\s+monitor\b|\bUSDM\b|\bDSCI\b|\bdrought\s+severity\s+and\s+coverage\b", re.I
)
_SCALE = re.compile(
    r"(\b(abnormal(ly)?\s+dry(ness)?|(moderate|severe|extreme|exceptional)"
    r"(\s*(,|to|and|or|through|-|–)+\s*(moderate|severe|extreme|exceptional))*"
    r"\s+drought)\b\s*(\(\s*D[0-4]\s*\))?)|(\(\s*D[0-4]\s*\))|(\bD[0-4](\s*[-–+]\s*D?[0-4])?\b)",
    re.I,
)
_SENTENCE = re.compile(r"(?<=[.!?;])(?<![.\s][A-Z]\.)\s+|\n+")  # "U.S. Drought" is no border


def mask_label_terms(text: str) -> tuple[str, bool]:
    """Take the label out of a text.

    Returns:
        What is left, possibly nothing, and whether anything was taken out.
    """
    sentences = [s for s in _SENTENCE.split(text) if s.strip()]
    kept = [s for s in sentences if not _MONITOR.search(s)]
    joined = " ".join(kept)
    masked = re.sub(r"\s+", " ", _SCALE.sub(PLACEHOLDER, joined)).strip()
    touched = len(kept) < len(sentences) or bool(_SCALE.search(joined))
    if not touched:
        return text, False
    return masked if re.search(r"\w", masked) else "", True
