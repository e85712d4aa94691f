"""What a network of given widths costs, in closed form: multiply-adds and parameters.

MACs of one image are a sum over convolutions, linears and attention products,

    sum_l c_l · out_l · in_l,    out_l, in_l = rest + sum_t coef_t · k_g(t) · k_h(t)

with k the number of units kept in each group (a second factor only where heads and head dimensions
share an axis) and c_l what doesn't change: the kernel times the places at which it is applied. All
of it is a few tensor operations for any number of keep vectors at once, on any device, without a
forward pass. Element-wise operations, norms and softmax aren't counted, just as torch's own
FlopCounterMode doesn't (two of its FLOPs are one MAC).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress.channels.attention import attentions
from compress.channels.graph import CONVOLUTIONS
from compress.channels.groups import Group, covered


@dataclass(frozen=True)
class Costs:
    """The closed form; made by `measure_costs`.

    Attributes:
        widths: int64 [G], units of each group in the dense model.
        rest: float64 [A], what an axis holds beside the groups' units.
        term_axis, term_coef, term_first, term_second: [T], the terms of all axes; index G stands
            for the constant 1.
        macs: float64 [L, 1 + 2]: constant, index of the first axis, of the second.
        parameters: the same, of weights, biases and norms.
    """

    widths: Tensor
    rest: Tensor = field(repr=False)
    term_axis: Tensor = field(repr=False)
    term_coef: Tensor = field(repr=False)
    term_first: Tensor = field(repr=False)
    term_second: Tensor = field(repr=False)
    macs: tuple[Tensor, Tensor, Tensor] = field(repr=False)
    parameters: tuple[Tensor, Tensor, Tensor] = field(repr=False)
    _elsewhere: dict[torch.device, Costs] = field(default_factory=dict, repr=False, compare=False)

    def macs_of(self, keeps: Tensor) -> Tensor:
        """Return the MACs of one image, float64 [...], for units kept [..., G]."""
        here = self.to(keeps.device)
        return here._sum(here.macs, keeps)

    def parameters_of(self, keeps: Tensor) -> Tensor:
        """Return the number of parameters, float64 [...], for units kept [..., G]."""
        here = self.to(keeps.device)
        return here._sum(here.parameters, keeps)

    def measure(self, name: str, keeps: Tensor) -> Tensor:
        """Return "macs" or "parameters"."""
        return self.macs_of(keeps) if name == "macs" else self.parameters_of(keeps)

    def to(self, device: str | torch.device) -> Costs:
        """Return the same on another device; moved there once."""
        place = torch.device(device)
        if place == self.widths.device:
            return self
        if place not in self._elsewhere:
            moved = {
                name: tuple(part.to(place) for part in value)
                if isinstance(value, tuple)
                else value.to(place)
                for name, value in vars(self).items()
                if name != "_elsewhere"
            }
            self._elsewhere[place] = Costs(**moved)  # type: ignore[arg-type]
        return self._elsewhere[place]

    def sizes(self, keeps: Tensor) -> Tensor:
        """Return the length of every axis, float64 [..., A]; `keeps` on this device."""
        keeps = keeps.to(torch.float64)
        padded = torch.cat([keeps, keeps.new_ones(*keeps.shape[:-1], 1)], dim=-1)
        terms = self.term_coef * padded[..., self.term_first] * padded[..., self.term_second]
        rest = self.rest.expand(*keeps.shape[:-1], -1)
        return rest.index_add(-1, self.term_axis, terms)

    def _sum(self, layers: tuple[Tensor, Tensor, Tensor], keeps: Tensor) -> Tensor:
        constant, first, second = layers
        sizes = self.sizes(keeps)
        return (constant * sizes[..., first] * sizes[..., second]).sum(-1)


class _Axes:
    """Collects axes and their terms."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.places = covered(groups)
        self.rest: list[float] = [1.0]  # axis 0 is the constant 1
        self.terms: list[tuple[int, float, int, int]] = []
        self.known: dict[tuple[str, str], int] = {}

    def axis(self, module: str, side: str, total: int) -> int:
        """Return the index of a module's axis of `total` channels."""
        key = (module, side)
        if key not in self.known:
            self.known[key] = self._new(self.places.get(key, []), total)
        return self.known[key]

    def product(self, parts: list[int], coef: float) -> int:
        """Return an axis that is `coef` times the units of one group or two."""
        self.rest.append(0.0)
        one = len(self.groups)
        first, second = [*parts, one, one][:2]
        self.terms.append((len(self.rest) - 1, coef, first, second))
        return len(self.rest) - 1

    def _new(self, parts: Any, total: int) -> int:
        one, index = len(self.groups), len(self.rest)
        crossing = len(parts) == 2 and all(m.positions.numel() == total for _, m in parts)
        if crossing:  # heads and their dimensions
            self.rest.append(0.0)
            first, second = (group for group, _ in parts)
            area = self.groups[first].width * self.groups[second].width
            self.terms.append((index, total / area, first, second))
            return index
        taken = sum(member.positions.numel() for _, member in parts)
        self.rest.append(float(total - taken))
        self.terms += [(index, float(m.span), group, one) for group, m in parts]
        return index


def measure_costs(model: nn.Module, example: Tensor, groups: Sequence[Group]) -> Costs:
    """Read off one forward pass where each layer is applied, and how its size follows the groups.

    What the counter counts beside that is taken to stay as it is.

    Args:
        model: the dense model; it is left as it was.
        example: pixel values [B, 3, H, W]; costs are those of one image.
        groups: the coupled groups.
    """
    applied = _applied(model, example)
    axes = _Axes(groups)
    macs: list[tuple[float, int, int]] = []
    parameters: list[tuple[float, int, int]] = []
    seen = set()
    for name, module in model.named_modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            wide, tall, kernel = _weighted(axes, name, module)
            weights = (kernel, tall, wide)
            parameters.append(weights)
            if module.bias is not None:
                parameters.append((1.0, tall, 0))
            if name in applied:
                macs.append((kernel * applied[name], tall, wide))
            seen.add(name)
    parameters += _others(model, axes, seen)
    macs += _products(model, axes, applied)
    made = _costs(groups, axes, macs, parameters)
    unseen = counted_macs(model, example) - float(made.macs_of(made.widths))
    if unseen > 0:  # products that no layer holds, such as attention written otherwise
        macs.append((unseen, 0, 0))
    return _costs(groups, axes, macs, parameters)


def _weighted(axes: _Axes, name: str, module: Any) -> tuple[int, int, float]:
    """Return the axes that a weight spans and what else multiplies them."""
    if isinstance(module, nn.Linear):
        tall = axes.axis(name, "out", module.out_features)
        return axes.axis(name, "in", module.in_features), tall, 1.0
    tall = axes.axis(name, "out", module.out_channels)
    kernel = float(torch.Size(module.kernel_size).numel())
    if module.groups > 1:  # whole groups go: what one output channel reads stays
        return 0, tall, kernel * (module.in_channels // module.groups)
    return axes.axis(name, "in", module.in_channels), tall, kernel


def _others(model: nn.Module, axes: _Axes, seen: set[str]) -> list[tuple[float, int, int]]:
    """Return the parameters of norms, tables and the like."""
    found = []
    for name, module in model.named_modules():
        if name in seen:
            continue
        for own, parameter in module.named_parameters(recurse=False):
            side = f"out.{own}" if (name, f"out.{own}") in axes.places else "out"
            length = int(parameter.shape[-1]) if parameter.dim() else 1
            if (name, side) in axes.places and length:
                axis = axes.axis(name, side, length)
                found.append((parameter.numel() / length, axis, 0))
            else:
                found.append((float(parameter.numel()), 0, 0))
    return found


def _products(
    model: nn.Module, axes: _Axes, applied: dict[str, float]
) -> list[tuple[float, int, int]]:
    """Return the two products of each attention: queries by keys, weights by values."""
    found = []
    for name, module in attentions(model):
        query, value = f"{name}.q_proj", f"{name}.v_proj"
        if query not in applied:
            continue
        pairs = applied[query] * applied[f"{name}.k_proj.length"]
        wide = axes.axis(query, "out", module.q_proj.out_features)
        tall = axes.axis(value, "out", module.v_proj.out_features)
        found += [(pairs, wide, 0), (pairs, tall, 0)]
    return found


@torch.no_grad()
def _applied(model: nn.Module, example: Tensor) -> dict[str, float]:
    """Return at how many places of an image each layer is applied; NAME.length: of sequences."""
    found: dict[str, float] = {}
    batch = len(example)

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if isinstance(module, nn.Linear):
                places = output.numel() // output.shape[-1] / batch
                found[f"{name}.length"] = output.shape[-2] if output.dim() > 2 else 1
            else:
                places = output[0, 0].numel()
            found[name] = found.get(name, 0.0) + places

        return hook

    hooks = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if isinstance(module, (*CONVOLUTIONS, nn.Linear))
    ]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        model(pixel_values=example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return found


def _costs(
    groups: Sequence[Group],
    axes: _Axes,
    macs: list[tuple[float, int, int]],
    parameters: list[tuple[float, int, int]],
) -> Costs:
    def columns(rows: list[Any], dtypes: Sequence[torch.dtype]) -> tuple[Tensor, ...]:
        return tuple(
            torch.tensor([row[i] for row in rows], dtype=dtype) for i, dtype in enumerate(dtypes)
        )

    whole, number = torch.int64, torch.float64
    axis, coef, first, second = columns(axes.terms, (whole, number, whole, whole))
    return Costs(
        widths=torch.tensor([group.width for group in groups]),
        rest=torch.tensor(axes.rest, dtype=number),
        term_axis=axis,
        term_coef=coef,
        term_first=first,
        term_second=second,
        macs=columns(macs, (number, whole, whole)),  # type: ignore[arg-type]
        parameters=columns(parameters, (number, whole, whole)),  # type: ignore[arg-type]
    )


@torch.no_grad()
def counted_macs(model: nn.Module, example: Tensor) -> int:
    """Count the MACs of one image by torch's FlopCounterMode, which doesn't know our formula."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
        return sdpa_flop_count(query, key, value)

    # the counter knows the fused attention of accelerators only
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with FlopCounterMode(display=False, custom_mapping={fused: attention}) as counter:
            model(pixel_values=example[:1])
    finally:
        for module, mode in training.items():
            module.training = mode
    return counter.get_total_flops() // 2
