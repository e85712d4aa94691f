"""Fused matrices as the linear maps that they hold: q, k and v, or gate and up.

A fused matrix has the aspect ratio and the spectrum of none of its parts, and exponents may only
be compared between alike shapes. So each part is measured by itself.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PretrainedConfig

from compress.checkpoints.anatomy import Matrix

# Families whose fused rows go head by head (q, k, v of the first group, then of the next); all
# others hold all of q, then all of k, then all of v. The shape is the same, so nothing else tells.
_HEAD_BY_HEAD = {"gpt_neox", "gpt_neox_japanese", "bloom", "falcon", "persimmon"}


def logical_parts(matrix: Matrix, weight: Tensor, config: PretrainedConfig) -> list[Tensor]:
    """Split a fused matrix into its linear maps.

    Args:
        matrix: which one; its role tells whether it is fused.
        weight: [out, in], its weights.
        config: of the model, for the numbers of heads.

    Returns:
        [out_i, in] each, views where the layout allows; `weight` alone where it isn't fused or
        nothing tells how.
    """
    out = weight.shape[0]
    if matrix.role == "gate_up" and out % 2 == 0:
        return [weight[: out // 2], weight[out // 2 :]]
    if matrix.role != "qkv":
        return [weight]
    text = config.get_text_config()
    heads = int(getattr(text, "num_attention_heads", None) or 0)
    groups = int(getattr(text, "num_key_value_heads", None) or heads)
    if not heads or out % (heads + 2 * groups):
        return [weight]
    width = out // (heads + 2 * groups)
    if text.model_type in _HEAD_BY_HEAD and heads % groups == 0:
        by_group = weight.reshape(groups, heads // groups + 2, width, -1)
        pieces = by_group[:, :-2], by_group[:, -2], by_group[:, -1]
        return [piece.reshape(-1, weight.shape[1]) for piece in pieces]
    return list(weight.split([heads * width, groups * width, groups * width]))
