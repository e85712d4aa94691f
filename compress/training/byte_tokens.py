"""A tokenizer that needs no files: one token a byte, for small models and first tries."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

_SPECIAL = ("<s>", "</s>", "<mask>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer: `<s>`, `</s>`, `<mask>`, then the 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *letters])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
        clean_up_tokenization_spaces=False,
    )
