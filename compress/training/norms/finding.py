"""Which modules of a layer a placement is about, found by structure."""

from __future__ import annotations

from typing import Any

from torch import nn

from compress.checkpoints.anatomy import Anatomy, Block
from compress.errors import RequestError

_ATTENDING = {"q", "k", "v", "qkv", "kv"}
_OUTPUTS = ("o", "down", "fc2")


def hidden_size(model: nn.Module) -> int:
    """Return the width of the residual stream."""
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("hidden_size", "d_model", "n_embd"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return int(model.get_input_embeddings().weight.shape[1])  # type: ignore[operator]


def branch_norms(model: nn.Module, block: Block) -> list[str]:
    """Return the norms of a layer that stand on its residual stream or its branches.

    Those of queries, keys and low-rank attention lie beside their projections and are left out, as
    are norms of another width.

    Raises:
        RequestError: the layer has none.
    """
    attending = {m.module.rpartition(".")[0] for m in block.matrices if m.role in _ATTENDING}
    attending.discard(block.name)
    width = hidden_size(model)
    found = []
    for name in block.norms:
        weight = getattr(model.get_submodule(name), "weight", None)
        if name.rpartition(".")[0] not in attending and (
            weight is None or tuple(weight.shape) == (width,)
        ):
            found.append(name)
    if not found:
        raise RequestError(
            f"`{block.name}` of this {type(model).__name__} has no norm of its hidden width "
            f"{width}, so LayerNorm Scaling has nothing to scale",
            "choose another placement, or leave --norm out",
        )
    return found


def check_pre_norm(model: nn.Module, anatomy: Anatomy) -> None:
    """Refuse a model without a norm behind its layers: its layers are post-norm already.

    Raises:
        RequestError: naming the last layer.
    """
    if not anatomy.final_norms:
        raise RequestError(
            f"no norm follows `{anatomy.blocks[-1].name}`, so the layers of this "
            f"{type(model).__name__} end in norms themselves (post-norm)",
            "norms can be placed anew in pre-norm models",
        )


def output_projections(block: Block) -> list[str]:
    """Return the linear modules by which attention and MLP write into the residual stream.

    Raises:
        RequestError: they aren't one each, as in mixtures of experts.
    """
    found = [matrix for matrix in block.matrices if matrix.role in _OUTPUTS]
    if len(found) != 2 or any(matrix.expert is not None for matrix in found):
        raise RequestError(
            f"`{block.name}` has {len(found)} output projections, sub-LN needs one of attention "
            "and one of a dense MLP",
            "choose another placement, such as lns",
        )
    return [matrix.module for matrix in found]
