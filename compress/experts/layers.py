"""Where experts sit in a model, and what one layer of them is made of.

A layer is found by structure: a module that holds stacked experts (gate, up and down of each), with
or without an MLP beside them that always runs. What routes, and with which weights, is never read
from the config: it is observed at the call (`capture`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compress.checkpoints.anatomy import Anatomy, Block
from compress.checkpoints.block_weights import BlockWeights
from compress.errors import RequestError
from compress.experts.merge import GatedMLP

_SHARED = ("shared_expert", "shared_experts", "shared_mlp")
_PARTS = ("gate_proj", "up_proj", "down_proj")
_PLAIN = ("w1", "w3", "w2")  # lfm2's names for gate, up and down


@dataclass(frozen=True)
class ExpertLayer:
    """One mixture-of-experts layer.

    Letters: E experts of width I, hidden size H.
    """

    block: str
    """The decoder layer's name."""
    index: int
    """The decoder layer's number in its stack, from 0."""
    name: str
    """The module that the decoder layer calls, such as `model.layers.3.mlp`."""
    experts: str
    """The module that holds the stacked experts."""
    count: int
    """E"""
    width: int
    """I"""
    hidden: int
    """H"""
    shared: str | None
    """The MLP that always runs, if there is one."""
    shared_width: int
    """Its width; 0 without one."""
    shared_gate: str | None
    """The one-row gate of that MLP, behind a sigmoid, if there is one."""
    scales_input: bool
    """A routing weight multiplies what an expert reads (llama4), not what it returns."""
    share: float
    """Factor on the sum of routed and shared outputs: 1, or 1/2 where they are averaged."""

    def expert(self, weights: BlockWeights, number: int) -> GatedMLP:
        """Return the weights of one expert as views."""
        return GatedMLP(*(weights.read(f"{self.experts}.{number}.{part}") for part in _PARTS))


def find_layers(model: nn.Module, anatomy: Anatomy) -> list[ExpertLayer]:
    """Return the model's expert layers, in order.

    Args:
        model: the model or its skeleton.
        anatomy: what `read_anatomy` found in it.

    Raises:
        RequestError: the model has no experts; or a layer's experts are of a form that can't be
            condensed, which is named.
    """
    found = [
        _layer(model, block, name)
        for block in anatomy.blocks
        for name in dict.fromkeys(m.module for m in block.matrices if m.expert is not None)
    ]
    if found:
        return found
    other = next((n for n, m in model.named_modules() if "expert" in n.rpartition(".")[2]), None)
    if other is not None:
        raise RequestError(
            f"`{other}` ({type(model.get_submodule(other)).__name__}) can't be condensed: its "
            "experts have another layout",
            "experts are needed that stack a gate, an up and a down projection without biases",
        )
    raise RequestError(
        f"`{type(model).__name__}` has no experts: nothing is there to be condensed",
        "`compress alpha-prune` makes dense models smaller",
    )


def _layer(model: nn.Module, block: Block, name: str) -> ExpertLayer:
    mine = [m for m in block.matrices if m.module == name and m.expert is not None]
    experts: Any = model.get_submodule(name)
    where, _, leaf = name.rpartition(".")
    parts = {m.name.rpartition(".")[2] for m in mine}
    biases = [n for n, _ in experts.named_parameters() if "bias" in n]
    count = 1 + max(m.expert or 0 for m in mine)
    known = parts == set(_PARTS) and leaf == "experts" and len(mine) == 3 * count
    clamped = bool(biases) or hasattr(experts, "limit")
    if not known or clamped or not hasattr(experts, "act_fn"):
        head, inside, _ = name.partition(".experts.")  # a list of experts, not stacked
        held = f"{head}.experts" if inside else name
        raise RequestError(
            f"`{held}` ({type(model.get_submodule(held)).__name__}) can't be condensed: its "
            "experts have " + ("biases or a clamp" if clamped else "another layout"),
            "experts are needed that stack a gate, an up and a down projection without biases",
        )
    moe: Any = model.get_submodule(where)
    shared = next((s for s in _SHARED if getattr(moe, s, None) is not None), None)
    gate = getattr(moe, "shared_expert_gate", None)
    width, hidden = next(m.shape for m in mine if m.name.endswith(".gate_proj"))
    return ExpertLayer(
        block=block.name,
        index=block.index,
        name=where,
        experts=name,
        count=count,
        width=width,
        hidden=hidden,
        shared=f"{where}.{shared}" if shared else None,
        shared_width=_width_of(getattr(moe, shared), f"{where}.{shared}") if shared else 0,
        shared_gate=f"{where}.shared_expert_gate" if gate is not None else None,
        scales_input=_scales_input(moe),
        share=0.5 if _averages(moe) else 1.0,
    )


def gated_parts(mlp: nn.Module, where: str) -> tuple[str, str, str]:
    """Return what a dense gated MLP calls its gate, up and down projection.

    Raises:
        RequestError: it is no gated MLP without biases.
    """
    for names in (_PARTS, _PLAIN):
        found = [getattr(mlp, name, None) for name in names]
        if all(isinstance(part, nn.Linear) and part.bias is None for part in found):
            return names
    raise RequestError(
        f"`{where}` ({type(mlp).__name__}) can't be condensed: it is no gated MLP without biases",
        "an MLP of gate_proj, up_proj and down_proj is needed beside the experts",
    )


def gated_weights(mlp: nn.Module, where: str) -> GatedMLP:
    """Return the weights of a dense gated MLP; raises as `gated_parts` does."""
    return GatedMLP(*(getattr(mlp, n).weight.detach() for n in gated_parts(mlp, where)))


def _width_of(mlp: nn.Module, where: str) -> int:
    return int(getattr(mlp, gated_parts(mlp, where)[0]).weight.shape[0])


def _scales_input(moe: Any) -> bool:
    """Whether routing weights multiply the experts' inputs: llama4 runs all on copies of them."""
    return type(moe).__name__ == "Llama4TextMoe"


def _averages(moe: Any) -> bool:
    return getattr(moe, "shared_expert_combination_strategy", "sum") == "average"


def apply_mlp(mlp: GatedMLP, inputs: Tensor, act: Any) -> Tensor:
    """D (act(G x) * U x) of rows [T, H]."""
    return neurons(mlp, inputs, act) @ mlp.down.T


def neurons(mlp: GatedMLP, inputs: Tensor, act: Any) -> Tensor:
    """act(G x) * U x of rows [T, H]: what the down projection reads, [T, W]."""
    return act(inputs @ mlp.gate.T) * (inputs @ mlp.up.T)
