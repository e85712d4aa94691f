"""Text, tokenizer and configs of the small training runs, made once in a directory.

Text is OpenWebText and WikiText, and GSM8K for fine-tuning (`data/` of the folder that
COMPRESS_ASSETS names); the last tenth of each is held out and only scored (of GSM8K, its test set).
The tokenizer is a byte-level BPE of the OpenWebText that is trained on.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

LENGTH = 128
VOCABULARY = 1024
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<mask>")


class Shape(NamedTuple):
    """A model's size; parameters with untied embeddings of 1024 tokens."""

    hidden: int
    mlp: int
    heads: int
    layers: int


SHAPES = {
    "base": Shape(128, 344, 4, 6),  # 1.4M
    "deep12": Shape(96, 256, 4, 12),  # 1.5M
    "deep24": Shape(64, 176, 4, 24),  # 1.3M
}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _documents(name: str) -> list[str]:
    folder = Path(os.environ["COMPRESS_ASSETS"]) / "data"
    if name == "openwebtext":
        return [row["text"] for row in _rows(folder / "openwebtext_docs.jsonl")]
    text = (folder / "wiki.test.raw").read_text(encoding="utf-8")
    articles: list[list[str]] = [[]]
    for line in text.splitlines(keepends=True):
        if line.startswith(" = ") and not line.startswith(" = ="):  # a title
            articles.append([])
        articles[-1].append(line)
    return ["".join(lines) for lines in articles if "".join(lines).strip()]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.rename(path)


def split(name: str) -> tuple[list[str], list[str]]:
    """Training and held-out documents of a corpus: the last tenth of its text is held out."""
    texts = _documents(name)
    total, seen, cut = sum(map(len, texts)), 0, 0
    while seen < 0.9 * total:
        seen, cut = seen + len(texts[cut]), cut + 1
    return texts[:cut], texts[cut:]


def make_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE of `texts`, with a mask token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    names = ("unk_token", "bos_token", "eos_token", "pad_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(names, SPECIAL)))


def config(shape: Shape, family: str = "llama") -> Any:
    """A config of a family in a shape."""
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig

    common = {"vocab_size": VOCABULARY, "tie_word_embeddings": False}
    if family == "gpt2":
        return GPT2Config(
            n_embd=shape.hidden, n_inner=shape.mlp, n_head=shape.heads, n_layer=shape.layers,
            n_positions=1024, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=1, eos_token_id=2, **common,
        )  # fmt: skip
    kind, extra = (LlamaConfig, {"num_key_value_heads": shape.heads, "rms_norm_eps": 1e-6})
    if family == "gpt_neox":
        kind, extra = GPTNeoXConfig, {}
    return kind(
        hidden_size=shape.hidden, intermediate_size=shape.mlp, num_attention_heads=shape.heads,
        num_hidden_layers=shape.layers, max_position_embeddings=1024, **extra, **common,
    )  # fmt: skip


def prepare(place: Path) -> None:
    """Write `<corpus>.jsonl`, `<corpus>.held.jsonl`, `tokenizer` and `<family>-<shape>` once.

    Two processes may do it at the same time: each file appears whole.
    """
    place.mkdir(parents=True, exist_ok=True)
    if (place / "ready-2").exists():
        return
    for name in ("openwebtext", "wikitext"):
        seen, held = split(name)
        _write(place / f"{name}.jsonl", [{"text": text} for text in seen])
        _write(place / f"{name}.held.jsonl", [{"text": text} for text in held])
    folder = Path(os.environ["COMPRESS_ASSETS"]) / "data"
    for name, file in (("gsm8k", "gsm8k_train_2000"), ("gsm8k.held", "gsm8k_test")):
        _write(place / f"{name}.jsonl", _rows(folder / f"{file}.jsonl"))
    make_tokenizer(split("openwebtext")[0]).save_pretrained(place / "tokenizer")
    for size, shape in SHAPES.items():
        for family in ("llama", "gpt2", "gpt_neox"):
            config(shape, family).save_pretrained(place / f"{family}-{size}")
    (place / "ready-2").touch()
