"""What one expert layer reads, routes and returns on the calibration tokens, as its model runs it.

Routing weights are those that the router hands to the experts, so normalisation, scaling and
correction biases of every family are in them. Nothing is recomputed from logits.

Letters: T real tokens, H hidden size, E experts, K routed experts a token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compress.checkpoints.replay import BlockRuns
from compress.errors import RunError
from compress.experts.layers import ExpertLayer


class LayerData(NamedTuple):
    """One layer's calibration tokens."""

    inputs: Tensor
    """[T, H], what the layer reads, behind the norm."""
    outputs: Tensor
    """[T, H], what the layer returns, before the residual is added."""
    routing: Tensor
    """[T, E] float32: each token's routing weights, 0 where an expert isn't chosen."""
    chosen: Tensor
    """[T, E] bool: which experts run on a token."""
    gate: Tensor | None
    """[T], the sigmoid on the shared MLP's output, where the layer has one."""
    stream: Tensor | None
    """[T, H], the residual stream without this layer's output, where it was asked for."""
    weight: Tensor | None = None
    """[T], one over the tokens of each token's text (a row of a batch), where it was asked for."""

    def split(self, share: float) -> tuple[LayerData, LayerData]:
        """Return the first tokens, and the last `share` of them."""
        cut = len(self.inputs) - max(1, round(share * len(self.inputs)))
        parts = [(None, None) if t is None else (t[:cut], t[cut:]) for t in self]
        return LayerData(*(p[0] for p in parts)), LayerData(*(p[1] for p in parts))  # type: ignore[arg-type]


def capture(runs: BlockRuns, layer: ExpertLayer, stream: str, *, residual: bool) -> LayerData:
    """Run a block on all calibration batches and take what its expert layer sees.

    Args:
        runs: the block's trial runs.
        layer: the block's expert layer.
        stream: the walk's stream.
        residual: whether the residual stream is wanted too.

    Raises:
        RunError: the layer isn't called as expert layers are.
    """
    batches = []
    for batch in runs.batches:
        with _Taps(runs, layer) as taps:
            outputs = runs.output(batch, stream)
        batches.append(taps.rows(runs.tokens(batch), outputs[0] if residual else None))
    whole = [None if ts[0] is None else torch.cat(ts) for ts in zip(*batches, strict=True)]
    return LayerData(*whole)  # type: ignore[arg-type]


class _Taps:
    """Hooks on a layer's modules for one run of its block."""

    def __init__(self, runs: BlockRuns, layer: ExpertLayer) -> None:
        self._layer = layer
        self._seen: dict[str, Any] = {}
        self._handles: list[Any] = []
        self._runs = runs

    def __enter__(self) -> _Taps:
        layer, seen = self._layer, self._seen

        def routed(module: Any, args: Any, kwargs: Any) -> None:
            values = [*args, *kwargs.values()]
            if not layer.scales_input and len(values) == 3:
                seen["routed"] = values[1], values[2]

        def whole(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            seen["inputs"] = args[0] if args else next(iter(kwargs.values()))
            seen["outputs"] = output[0] if isinstance(output, tuple) else output

        hooks: list[tuple[str, Callable[..., None]]] = [(layer.name, whole)]
        for name, hook in hooks:
            module = self._runs.module(name)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
        experts = self._runs.module(layer.experts)
        self._handles.append(experts.register_forward_pre_hook(routed, with_kwargs=True))
        if layer.scales_input:
            self._tap("router", f"{layer.name}.router")
        if layer.shared_gate:
            self._tap("gate", layer.shared_gate)
        return self

    def _tap(self, key: str, name: str) -> None:
        def take(module: Any, args: Any, output: Any) -> None:
            self._seen[key] = output

        self._handles.append(self._runs.module(name).register_forward_hook(take))

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def rows(self, tokens: Tensor | None, block_output: Tensor | None) -> LayerData:
        """Return what was seen, of real tokens only."""
        layer, seen = self._layer, self._seen
        wanted = {"inputs", "outputs", "router" if layer.scales_input else "routed"}
        if not wanted <= set(seen):
            raise RunError(
                f"`{layer.name}` doesn't call its experts with each token's experts and weights",
                "its family can't be condensed by this version",
            )
        kept = None if tokens is None else tokens.flatten().nonzero().squeeze(1)

        def real(values: Tensor) -> Tensor:
            flat = values.reshape(-1, values.shape[-1])
            return flat if kept is None else flat[kept.to(flat.device)]

        inputs, outputs = real(seen["inputs"]), real(seen["outputs"])
        routing, chosen = self._routing(real)
        gate = real(seen["gate"]).float().sigmoid().squeeze(1) if "gate" in seen else None
        stream = None if block_output is None else real(block_output) - outputs
        weight = None
        if block_output is not None:
            shape = seen["inputs"].shape[:2] if tokens is None else tokens.shape
            mask = torch.ones(shape) if tokens is None else tokens.float()
            weight = real((mask / mask.sum(1, keepdim=True).clamp(min=1))[..., None]).squeeze(1)
        return LayerData(inputs, outputs, routing, chosen, gate, stream, weight)

    def _routing(self, real: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        if self._layer.scales_input:
            scores = real(self._seen["router"][0]).float()  # 0 where an expert isn't chosen
            return scores, scores > 0
        index, weight = (real(value) for value in self._seen["routed"])
        size = (len(index), self._layer.count + 1)  # an index of E stands for no expert
        routing = torch.zeros(size, dtype=torch.float32, device=index.device)
        routing.scatter_(1, index, weight.float())
        chosen = torch.zeros(size, dtype=torch.bool, device=index.device)
        chosen.scatter_(1, index, torch.ones_like(index, dtype=torch.bool))
        return routing[:, :-1], chosen[:, :-1]
