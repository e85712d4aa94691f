"""The Gram matrices of the loss's gradients by the layers' outputs: the other half of K-FAC.

The model is whole in memory for this, with the activations of one batch and Γ [m, m] of every
chosen layer in float32. What each token adds is clipped, and the ends of sequences are left out, as
LEMS has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoints import edits
from compress.checkpoints.anatomy import Matrix
from compress.checkpoints.matrices import is_pointwise
from compress.checkpoints.source import Source
from compress.errors import RunError
from compress.lowrank.modules import place_of
from compress.lowrank.store import BlockFiles
from compress.numerics.counter import generator
from compress.progress import Progress

_ENDS = 0.125  # of a sequence's tokens, left out at either end
_CLIP = (0.1, 10.0)  # of the mean norm of a token's gradient


def measure_gradients(
    source: Source,
    matrices: Sequence[Matrix],
    batches: Sequence[Mapping[str, Any]],
    files: BlockFiles,
    *,
    seed: int,
    device: str,
    dtype: torch.dtype,
    progress: Progress,
) -> None:
    """Run the whole model forwards and backwards, and keep Γ of each layer by block.

    Args:
        source: the model.
        matrices: the layers.
        batches: calibration batches.
        files: where Γ goes: layer -> [m, m] float32, a mean over tokens.
        seed: of what is drawn where there are no next tokens to predict.
        device, dtype: of the run.
        progress: told of each batch.

    Raises:
        RunError: a gradient isn't finite, or reached no chosen layer.
    """
    model = source.load(dtype, device)
    model.requires_grad_(False)
    stacks = {m.module for m in matrices if m.stacked}
    edits.swap(model, {name: {"kind": "expert_list"} for name in stacks})
    sums: dict[str, _Gamma] = {}
    handles = [
        model.get_submodule(place_of(m)).register_forward_hook(_hook(m, sums)) for m in matrices
    ]
    try:
        with torch.enable_grad():
            for number, batch in enumerate(batches):
                progress("gradients", number, len(batches))
                moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
                _loss(model, moved, seed, number).backward()
    finally:
        for handle in handles:
            handle.remove()
    progress("gradients", len(batches), len(batches))
    _keep(matrices, sums, files)


class _Gamma:
    """Γ of one layer."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.rows = 0

    def add(self, gradient: Tensor) -> None:
        """Account the gradient by one call's output, [B, T, m] or [rows, m]."""
        if gradient.ndim == 3 and gradient.shape[1] >= 8:
            cut = int(_ENDS * gradient.shape[1])
            gradient = gradient[:, cut : gradient.shape[1] - cut]
        rows = gradient.reshape(-1, gradient.shape[-1]).float()
        norms = rows.norm(dim=1)
        rows, norms = rows[norms > 0], norms[norms > 0]  # padding and masked tokens have none
        if not len(rows):
            return
        wanted = norms.clamp(*(bound * float(norms.mean()) for bound in _CLIP))
        rows = rows * (wanted / norms)[:, None]
        if self.total is None:
            self.total = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
        self.total.addmm_(rows.T, rows)
        self.rows += len(rows)


def _hook(matrix: Matrix, sums: dict[str, _Gamma]) -> Callable[..., Any]:
    def seen(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if not output.requires_grad:  # the first layer of the graph: nothing else asks for any
            output = output.detach().requires_grad_(True).clone()
        own = sums.setdefault(matrix.name, _Gamma())
        first = is_pointwise(module)
        output.register_hook(lambda g: own.add(g.mT if first else g))
        return output

    return seen


def _loss(model: Any, batch: Mapping[str, Any], seed: int, number: int) -> Tensor:
    """What is differentiated: the loss on the next tokens; else on labels drawn from the model's
    own outputs, which gives its Fisher information; else a random projection of the outputs.
    """
    ids = batch.get("input_ids")
    output = model(**batch)
    logits = getattr(output, "logits", None)
    draw = generator(seed, number)
    if not isinstance(logits, Tensor):
        hidden = output[0].float()
        noise = torch.randn(hidden.shape, generator=draw).to(hidden)
        return (hidden * noise).sum() / hidden.shape[0]
    flat = logits.float().reshape(-1, logits.shape[-1])
    causal = model.can_generate() and not getattr(model.config, "is_encoder_decoder", False)
    if causal and ids is not None and logits.ndim == 3:
        flat = logits[:, :-1].float().reshape(-1, logits.shape[-1])
        labels, mask = ids[:, 1:].reshape(-1), batch.get("attention_mask")
        if mask is not None:
            labels = labels.masked_fill(mask[:, 1:].reshape(-1) == 0, -100)
    else:
        shares = flat.detach().softmax(-1).cpu()
        labels = torch.multinomial(shares, 1, generator=draw).squeeze(1).to(flat.device)
    return nn.functional.cross_entropy(flat, labels, reduction="sum") / logits.shape[0]


def _keep(matrices: Sequence[Matrix], sums: Mapping[str, _Gamma], files: BlockFiles) -> None:
    blocks: dict[str, dict[str, Tensor]] = {}
    for matrix in matrices:
        own = sums.get(matrix.name)
        if own is None or own.total is None:
            gamma = torch.eye(matrix.shape[0])  # no gradient came: all outputs count alike
        else:
            gamma = own.total / own.rows
        if not bool(torch.isfinite(gamma).all()):
            raise RunError(
                f"the gradients by the outputs of `{matrix.name}` are not finite",
                "the model overflows in its dtype: try --dtype float32 or bfloat16",
            )
        blocks.setdefault(matrix.block, {})[matrix.name] = gamma
    if not any(own.rows for own in sums.values()):
        raise RunError("no gradient reached a chosen layer", "use another --method")
    for block, tensors in blocks.items():
        files.write(block, tensors, {})
