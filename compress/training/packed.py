"""Whether a model keeps the documents of a packed row apart.

transformers builds a block-diagonal causal mask (or variable lengths for flash attention) when it
sees position ids that begin anew and no attention mask. Not every family takes part, so it is tried
on the model itself.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from compress.errors import RequestError

_LENGTH = 4
_ROUNDING = 1e-3  # experts may sum in another order


@torch.no_grad()
def check_separation(model: PreTrainedModel) -> None:
    """Refuse a model in which a document sees the one before it.

    Two rows share their second document and differ in the first; the second must come out equal.

    Raises:
        RequestError: it doesn't, or the model takes no position ids.
    """
    config = model.config.get_text_config()
    first = torch.arange(_LENGTH) % config.vocab_size
    rows = torch.stack([torch.cat([first, first]), torch.cat([first.flip(0), first])])
    places = torch.arange(_LENGTH).repeat(2).expand(2, -1)
    training = model.training
    try:
        outputs = model.eval()(
            input_ids=rows.to(model.device), position_ids=places.to(model.device), use_cache=False
        )
    except TypeError:
        apart = False
    else:
        seconds = outputs.logits[:, _LENGTH:].float()
        apart = float((seconds[0] - seconds[1]).abs().max()) <= _ROUNDING * float(seconds.std())
    model.train(training)
    if not apart:
        raise RequestError(
            f"`--separate-documents` can't act: in `{type(model).__name__}` a document sees the "
            "one before it in its row",
            "leave it out, or train a llama, qwen, mistral or gpt2 model",
        )
