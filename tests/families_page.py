"""docs/families.md: which model families are tested, and what is left alone in them.

Write it with `python tests/families_page.py`; tests compare every line with the model's anatomy.
"""

from __future__ import annotations

import re
from pathlib import Path

from families import FAMILIES, build

from compress.checkpoints.anatomy import Anatomy, read_anatomy

PAGE = Path(__file__).resolve().parent.parent / "docs" / "families.md"
REFUSED = ("squeezebert", "resnet", "regnet", "poolformer", "mobilenet_v2")
UNTESTED = {"gemma3n": "its vision tower needs the package timm; `gemma3n_text` is tested"}
_TEXT_ONLY = "tested with text: its vision tower is written as it was"
_SHARED = "blocks share weights: edited once, in the first of them"
_AT_PRODUCT = "`dt_proj` is used without its module: observed at the multiplication"
_GLOBAL = "its global projections work only with global attention: else pruned by magnitude"
NOTES = {
    "rwkv": "transformers divides weights in place at the first forward; compared with "
    "`rescale_every=0`",
    "vit_mae": "needs `noise` as an input, else its mask is drawn anew at every forward",
    "zamba": _SHARED,
    "zamba2": f"{_SHARED}; adapters that only later blocks use are pruned by magnitude",
    "mamba": _AT_PRODUCT,
    "jamba": _AT_PRODUCT,
    "wavlm": "attention runs in torch's own code: observed at the multiplication; rows of a padded "
    "batch can't be told apart there, then its attention is pruned by magnitude",
    "longcat_flash": "weights are held for experts without work: pruned by magnitude",
    "dbrx": "its experts lie in one flat weight, [experts · width, hidden]: left alone",
    "mllama": _TEXT_ONLY,
    "llama4": _TEXT_ONLY,
    "gemma3": _TEXT_ONLY,
    "longformer": _GLOBAL,
    "led": _GLOBAL,
}
HEAD = """# Model families

Every model type below with "yes" goes, as a tiny random model, through `alpha_prune` (Wanda at
50 %, calibrated on random tokens, images or sound), save and plain `from_pretrained`; what it
returns then equals what the pruned model in memory returned, bit for bit, and an audit finds no
weight of a block that was neither changed nor is listed here. Weights are compared copied out of
the mapped file, since CPU kernels choose by address and may differ in the last bit.

Blocks and matrices are found by structure, not by these names; the one exception is
`compress/checkpoints/exceptions.py`. Vision and speech models are calibrated from Python:
`compress.alpha_prune(model, out, batches=[{"pixel_values": ...}, ...])`.

This page is written by `python tests/families_page.py` and checked by tests.

| model type | tested | left alone in its blocks, and why | remarks |
| --- | --- | --- | --- |
"""


def row_of(kind: str, anatomy: Anatomy) -> str:
    """Return the page's line of a family."""
    left: dict[str, list[str]] = {}
    for block in anatomy.blocks:
        for name, reason in block.skipped:
            leaf = ".".join(name.removeprefix(f"{block.name}.").split(".")[-2:])
            leaf = re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "N", leaf)
            reason = re.sub(r"^a parameter \[.*?\] of", "a parameter of", reason)
            reason = "tied to another weight" if reason.startswith("tied") else reason
            if leaf not in left.setdefault(reason, []):
                left[reason].append(leaf)
    told = "; ".join(f"{why}: {', '.join(f'`{n}`' for n in left[why])}" for why in sorted(left))
    tested, note = "yes", NOTES.get(kind, "")
    if kind in REFUSED:
        tested, note = "refused", "no block holds a linear layer, only convolutions"
    return f"| `{kind}` | {tested} | {told or '-'} | {note or '-'} |"


def page() -> str:
    """Return the whole page."""
    rows = [row_of(kind, read_anatomy(build(kind))) for kind in FAMILIES]
    rows += [f"| `{kind}` | no | - | {reason} |" for kind, reason in UNTESTED.items()]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
