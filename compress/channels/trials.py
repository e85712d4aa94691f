"""Cutting on trial: what a trace of shapes can't tell of a network's code.

Code that reshapes features by a number that it remembers, merges patches (Swin) or reads a stream
twice (DINOv2's classifier) takes several places for one. In families whose every kind of group is
tested that is known; in others one group of each structure is cut from a copy, run, and compared
with the masked network.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.channels.groups import Group
from compress.channels.masks import Masks
from compress.checkpoints.configs import first_line
from compress.errors import RequestError

TESTED = (
    *("resnet", "regnet", "mobilenet_v1", "mobilenet_v2", "convnext", "convnextv2"),
    *("vit", "deit", "beit", "swin", "dinov2"),
)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of the logits' spread; 16-bit: 0.1
_CAUGHT = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)


def sift(
    model: nn.Module, example: Tensor, groups: Sequence[Group]
) -> tuple[list[Group], dict[str, str]]:
    """Try what isn't known to go well.

    Args:
        model: the dense network; it stays as it is.
        example: pixel values.
        groups: found in it.

    Returns:
        The groups that may be cut, and name -> why of the others.
    """
    tested = getattr(getattr(model, "config", None), "model_type", None) in TESTED
    verdicts: dict[str, str | None] = {}
    kept, refused = [], {}
    for group in groups:
        if tested and group.kind != "streams":
            kept.append(group)
            continue
        key = group.name if group.kind == "streams" else group.scope
        if key not in verdicts:
            verdicts[key] = fault(model, example, group)
        why = verdicts[key]
        if why is None:
            kept.append(group)
        else:
            refused[group.name] = why
    return kept, refused


def fault(model: nn.Module, example: Tensor, group: Group) -> str | None:
    """Cut a group's second half from a copy and run it; return what goes wrong.

    Args:
        model: the dense network.
        example: pixel values.
        group: of its groups.
    """
    from compress.channels.cutting import cut

    mask = torch.arange(group.width) < max(1, group.width // 2)
    training = {module: module.training for module in model.modules()}
    try:
        trial: Any = copy.deepcopy(model).eval()
        model.eval()
        with torch.no_grad(), Masks(model, [group]) as masks:
            masks.set([mask])
            wanted = model(pixel_values=example).logits
        cut(trial, [group], [mask])
        with torch.no_grad():
            found = trial(pixel_values=example).logits
    except (*_CAUGHT, RequestError) as error:
        return f"the network doesn't run without half of its units ({first_line(error)})"
    finally:
        for module, mode in training.items():
            module.training = mode
    worst = float((found - wanted).abs().max()) / (float(wanted.float().std()) or 1.0)
    if group.exact and not worst <= TOLERANCE.get(wanted.dtype, 0.1):
        return f"cutting it isn't what masking it is (logits differ by {worst:.2g} of their spread)"
    return None
