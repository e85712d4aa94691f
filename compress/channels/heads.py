"""A classifier for other classes: the last layer anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from compress.errors import RequestError


def replace_head(model: Any, classes: Sequence[str], seed: int = 0) -> list[str]:
    """Give a classifier new last layers with as many outputs as there are classes.

    Weights are drawn from N(0, 0.02²), biases are 0; the config takes the classes' names.

    Args:
        model: an image classifier of transformers; changed in place.
        classes: names of the outputs.
        seed: of the draw.

    Returns:
        Names of the layers made anew: one, or two where a second head stands on a teacher's token.

    Raises:
        RequestError: no linear layer of the head gives the classes' scores.
    """
    base = f"{model.base_model_prefix}."
    outputs = int(model.config.num_labels)
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == outputs
        and not name.startswith(base)
    ]
    if not found:
        raise RequestError(
            f"{type(model).__name__} has no linear classifier that --new-head could replace",
            "leave --new-head out, and use data of the head's own classes",
        )
    draws = torch.Generator().manual_seed(seed)
    for name in found:
        old: Any = model.get_submodule(name)
        place = old.weight
        new = nn.Linear(old.in_features, len(classes), bias=old.bias is not None)
        with torch.no_grad():
            new.weight.normal_(0, 0.02, generator=draws)
            if new.bias is not None:
                new.bias.zero_()
        model.set_submodule(name, new.to(place.device, place.dtype))
    config = model.config
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    model.num_labels = len(classes)
    return found
