"""The mask token: the tokenizer's own, one that it holds unused, or a new one.

An unused id keeps the checkpoint's shape. A row that no training has touched gets the mean of all
embeddings: random numbers, or the leftovers of an initialisation, stand out among trained rows.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from compress.errors import RequestError

NEW = "<mask>"
_UNUSED = re.compile(r"[<\[]\|?(reserved|unused|extra|dummy|placeholder)\w*\|?[>\]]", re.IGNORECASE)
_TAKEN = ("bos_token", "eos_token", "pad_token", "unk_token")
_MULTIPLE = 64


class MaskToken(NamedTuple):
    """What will serve as the mask.

    Attributes:
        token, id: of the tokenizer.
        origin: "own", "unused" or "new".
    """

    token: str
    id: int
    origin: str


def choose_mask_token(tokenizer: Any, wanted: str | None = None) -> MaskToken:
    """Choose the mask token and enter it in the tokenizer.

    Args:
        tokenizer: changed, unless its own mask token serves.
        wanted: the token to take; one that the tokenizer lacks is added.

    Raises:
        RequestError: the wanted token has another role, or the tokenizer can't take a new one.
    """
    vocabulary = tokenizer.get_vocab()
    if wanted is not None:
        role = next((name for name in _TAKEN if getattr(tokenizer, name, None) == wanted), None)
        if role is not None:
            raise RequestError(
                f"`--mask-token {wanted}` is the tokenizer's {role.replace('_', ' ')}",
                "take another, or leave it out: an unused token is found, or a new one added",
            )
    elif tokenizer.mask_token is not None:
        return MaskToken(str(tokenizer.mask_token), int(tokenizer.mask_token_id), "own")
    else:
        unused = [token for token in vocabulary if _UNUSED.fullmatch(token)]
        wanted = min(unused, key=vocabulary.__getitem__) if unused else _free_name(vocabulary)
    origin = "unused" if wanted in vocabulary else "new"
    reason: Exception | None = None
    try:
        tokenizer.add_special_tokens({"mask_token": wanted})
        found = tokenizer.convert_tokens_to_ids(wanted)
    except (NotImplementedError, ValueError, TypeError) as error:
        found, reason = None, error
    if found is None or found == tokenizer.unk_token_id:
        raise RequestError(
            f"no mask token is possible: the tokenizer can't take `{wanted}`",
            "name one of its own tokens: `--mask-token TOKEN`",
        ) from reason
    return MaskToken(wanted, int(found), origin)


def _free_name(vocabulary: dict[str, int]) -> str:
    return NEW if NEW not in vocabulary else "<mask:meap>"


@torch.no_grad()
def give_embedding(model: PreTrainedModel, mask: MaskToken, size: int) -> None:
    """Give the mask token a row of its own where it has none that means anything.

    Args:
        model: with trained weights; its embeddings grow, to a multiple of 64 rows, only if they
            have to.
        mask: the token.
        size: tokens of the tokenizer, the mask included.
    """
    if mask.origin == "own":
        return
    embedding: Any = model.get_input_embeddings()
    before = embedding.weight.shape[0]
    if size > before:
        model.resize_token_embeddings(size, pad_to_multiple_of=_MULTIPLE, mean_resizing=False)
    seen: set[int] = set()
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = getattr(module, "weight", None)
        if weight is None or weight.data_ptr() in seen:
            continue
        seen.add(weight.data_ptr())
        mean = weight[:before].float().mean(0).to(weight.dtype)
        rows = range(before, weight.shape[0]) if size > before else [mask.id]
        for row in rows:
            weight[row] = mean
