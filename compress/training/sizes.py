"""The Llama sizes of the papers, and the settings they were trained with.

Sources: GaLore (arXiv:2403.03507) and SPAM (2501.06842) for 60m to 7b, Mix-LN (2412.13795) for 71m
and 250m; 9m to 35m are small ones of the same form. All: untied embeddings, RoPE, SiLU, RMS norm
with eps 1e-6, initial std 0.02. Names count the papers' vocabulary of 32000; here the tokenizer's
is taken, so a small one makes a smaller model.
"""

from __future__ import annotations

from typing import NamedTuple

from transformers import LlamaConfig

_LENGTH = 1024  # positions that the papers' configs allow


class Preset(NamedTuple):
    """One size.

    Attributes:
        hidden, mlp, heads, layers: of the model.
        lr: peak learning rate for Adam.
        spam_lr: for SPAM and Stable-SPAM.
        steps: of 512 sequences of 256 tokens.
    """

    hidden: int
    mlp: int
    heads: int
    layers: int
    lr: float
    spam_lr: float
    steps: int


PRESETS: dict[str, Preset] = {
    "llama-9m": Preset(128, 352, 4, 4, 1e-3, 1e-3, 5_000),
    "llama-20m": Preset(256, 688, 4, 4, 1e-3, 1e-3, 5_000),
    "llama-35m": Preset(384, 1024, 8, 6, 1e-3, 1e-3, 5_000),
    "llama-60m": Preset(512, 1376, 8, 8, 1e-3, 1e-3, 10_000),
    "llama-71m": Preset(512, 1368, 8, 12, 1e-3, 1e-3, 10_000),
    "llama-130m": Preset(768, 2048, 12, 12, 1e-3, 8e-4, 20_000),
    "llama-250m": Preset(768, 2560, 16, 24, 1e-3, 8e-4, 40_000),
    "llama-350m": Preset(1024, 2736, 16, 24, 5e-4, 4e-4, 60_000),
    "llama-1b": Preset(2048, 5461, 32, 24, 5e-4, 2e-4, 100_000),
    "llama-7b": Preset(4096, 11008, 32, 32, 5e-4, 2e-4, 150_000),
}


def preset_config(name: str, vocabulary: int, seqlen: int) -> LlamaConfig:
    """Return a preset's config for a tokenizer.

    Args:
        name: a key of PRESETS.
        vocabulary: tokens of the tokenizer; the embedding is padded to a multiple of 64.
        seqlen: of the training; longer than 1024, it sets the model's limit.
    """
    size = PRESETS[name]
    return LlamaConfig(
        vocab_size=vocabulary + -vocabulary % 64,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        num_hidden_layers=size.layers,
        max_position_embeddings=max(seqlen, _LENGTH),
        rms_norm_eps=1e-6,
        initializer_range=0.02,
        tie_word_embeddings=False,
    )
