"""Coupled groups from torch-pruning's DependencyGraph, as plain descriptions.

Only its graph is used: it is built on the model as it is, read out, and forgotten. Its tracing
needs autograd on, which is seen to; weights that don't train are let train for the trace.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.channels.groups import Group, Member
from compress.errors import RequestError

Refused = dict[str, str]
"""Module name -> why its channels stay."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class NotCut(Exception):
    """A coupled set that can't be cut: which module stands in the way, and why."""

    def __init__(self, module: str, why: str) -> None:
        super().__init__(f"{module}: {why}")
        self.module, self.why = module, why


def traced_groups(
    model: nn.Module, example: Tensor, inside: frozenset[str]
) -> tuple[list[Group], Refused]:
    """Trace the model and describe its coupled sets.

    Args:
        model: an image classifier.
        example: pixel values.
        inside: projections of attention, whose coupling is known by structure.

    Returns:
        The groups, and modules whose channels can't be removed with the reason.

    Raises:
        RequestError: the model doesn't run on the example.
    """
    names = {module: name for name, module in model.named_modules()}
    graph = _trace(model, example)
    owners = _parameter_owners(model)
    found: list[Group] = []
    refused: Refused = {}
    for coupled in graph.get_all_groups(ignored_layers=[]):
        try:
            group = _describe(model, graph, coupled, names, owners, inside)
        except NotCut as reason:
            refused.setdefault(reason.module, reason.why)
            continue
        if group is not None:
            found.append(group)
    return _merge_grouped(model, found, refused), refused


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """Let every weight train, in eval mode, for as long as it takes."""
    training = {module: module.training for module in model.modules()}
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        model.eval()
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, mode in training.items():
            module.training = mode


def _trace(model: nn.Module, example: Tensor) -> Any:
    """Return torch-pruning's graph of the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_pruning

        graph = torch_pruning.DependencyGraph()
        with _traceable(model):
            try:
                graph.build_dependency(
                    model,
                    example_inputs={"pixel_values": example},
                    output_transform=_scalar,
                    verbose=False,
                )
            except (RuntimeError, ValueError, TypeError, AttributeError) as error:
                said = str(error).strip().splitlines()
                raise RequestError(
                    f"{type(model).__name__} doesn't run on images of "
                    f"{example.shape[-1]} pixels: {said[0] if said else type(error).__name__}",
                    "`--image-size` gives another size; an image classifier is needed",
                ) from error
    return graph


def _scalar(output: Any) -> Tensor:
    """Reduce a model's output to one number that depends on all of its logits."""
    logits = getattr(output, "logits", None)
    return (output[0] if logits is None else logits).sum()


def _parameter_owners(model: nn.Module) -> dict[nn.Parameter, tuple[str, str]]:
    """Return parameter -> (its module's name, its own name)."""
    return {
        parameter: (name, own)
        for name, module in model.named_modules()
        for own, parameter in module.named_parameters(recurse=False)
    }


def _describe(
    model: nn.Module,
    graph: Any,
    coupled: Any,
    names: Mapping[nn.Module, str],
    owners: Mapping[nn.Parameter, tuple[str, str]],
    inside: frozenset[str],
) -> Group | None:
    """Turn one coupled set into a Group; None for sets that are known otherwise or must stay."""
    from torch_pruning.ops import OPTYPE

    width = len(coupled[0].idxs)
    members: list[Member] = []
    for item in coupled:
        node, target = item.dep.target, item.dep.target.module
        if node.type == OPTYPE.OUTPUT:
            return None  # the classifier's outputs
        if node.type == OPTYPE.PARAMETER:
            where, own = owners[target]
            members.append(_parameter_member(model, where, own, _positions(item, width, where)))
            continue
        if target not in names or not any(True for _ in target.parameters(recurse=False)):
            continue  # an operation
        name = names[target]
        writes = graph.is_out_channel_pruning_fn(item.dep.handler)
        if name in inside and writes:
            return None
        member = _module_member(target, name, writes, _positions(item, width, name))
        if not any((m.module, m.axis) == (member.module, member.axis) for m in members):
            members.append(member)
    return _grouped_as(model, width, members)


def _positions(item: Any, width: int, name: str) -> Tensor:
    """Return [width, span]: where each unit of the root lies in this member."""
    places, roots = torch.tensor(item.idxs), torch.tensor(item.root_idxs)
    if len(places) % width or len(places) != len(roots):
        raise NotCut(name, "its channels aren't a whole multiple of those it is coupled to")
    order = torch.argsort(roots * (int(places.max()) + 1) + places)
    counts = torch.bincount(roots, minlength=width)
    if not bool((counts == len(places) // width).all()):
        raise NotCut(name, "its channels are unevenly coupled")
    return places[order].reshape(width, -1)


def _module_member(module: nn.Module, name: str, writes: bool, positions: Tensor) -> Member:
    """Describe a convolution, a linear or a norm."""
    if isinstance(module, CONVOLUTIONS):
        if type(module) not in CONVOLUTIONS:
            raise NotCut(name, f"a {type(module).__name__} isn't a plain convolution")
        if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
            return Member(name, "out", "depthwise", positions)
        kind = "grouped" if module.groups > 1 else "conv"
        axis = "out" if writes else "in"
        return Member(name, axis, kind, positions, "input" if axis == "in" else None)
    if isinstance(module, nn.Linear):
        axis = "out" if writes else "in"
        return Member(name, axis, "linear", positions, "input" if axis == "in" else None)
    if isinstance(module, nn.GroupNorm):
        raise NotCut(name, "a group norm's groups are of a fixed number of channels")
    own = {tuple(p.shape) for p in module.parameters(recurse=False)}
    plain = not any(True for child in module.children() for _ in child.parameters())
    if len(own) == 1 and len(next(iter(own))) == 1 and plain:  # an activation may be inside
        return Member(name, "out", "norm", positions)
    raise NotCut(name, f"a {type(module).__name__} can't be cut")


def _parameter_member(model: nn.Module, where: str, own: str, positions: Tensor) -> Member:
    """Describe a parameter that its module uses itself."""
    module = model.get_submodule(where)
    shapes = {tuple(p.shape) for p in module.parameters(recurse=False)}
    if len(shapes) == 1 and set(next(iter(shapes))[:-1]) == {1} and not any(module.children()):
        return Member(where, "out", "response-norm", positions, "input")
    return Member(where, "out", "parameter", positions, None, own)


def _grouped_as(model: nn.Module, width: int, members: list[Member]) -> Group | None:
    """Give a coupled set its kind, and say whether its removal is exact."""
    merged: list[Member] = []
    for member in members:  # a response norm has two parameters, and is one member
        if member.kind != "response-norm" or all(m.module != member.module for m in merged):
            merged.append(member)
    writers = [m for m in merged if m.axis == "out" and m.kind in ("conv", "grouped", "linear")]
    if not writers:
        return None
    if not any(m.axis == "in" for m in merged):
        raise NotCut(writers[0].module, "nothing reads its channels")
    merged.sort(key=lambda m: (m.axis != "out", m.kind not in ("conv", "grouped", "linear")))
    norms = [model.get_submodule(m.module) for m in merged if m.kind == "norm"]
    layered = next((n for n in norms if not isinstance(n, nn.modules.batchnorm._BatchNorm)), None)
    stream = layered is not None or any(m.kind == "parameter" for m in merged)
    linear = all(m.kind == "linear" for m in writers)
    kind = "streams" if stream else "mlp" if linear else "channels"
    why = f"{type(layered).__name__} is over fewer channels" if layered is not None else ""
    return Group(
        writers[0].module, kind, width, tuple(merged), _scope(model, kind, merged), not why, why
    )


def _scope(model: nn.Module, kind: str, members: list[Member]) -> str:
    """Name a group's structure: the modules' types and axes in their order."""
    parts = [f"{type(model.get_submodule(m.module)).__name__}.{m.axis}" for m in members]
    return f"{kind}:" + ",".join(parts)


def _merge_grouped(model: nn.Module, found: list[Group], refused: Refused) -> list[Group]:
    """Join what a grouped convolution reads with what it writes: its groups go as a whole.

    Each unit of the joined group is one group of the convolution; with whole groups gone the
    convolution computes for the others what it did before.
    """
    groups = list(found)
    names = list(dict.fromkeys(m.module for g in groups for m in g.members if m.kind == "grouped"))
    for name in names:
        module: Any = model.get_submodule(name)
        touching = [g for g in groups if any(m.module == name for m in g.members)]
        sides = {m.axis for g in touching for m in g.members if m.module == name}
        groups = [g for g in groups if g not in touching]
        try:
            if sides != {"in", "out"}:
                raise NotCut(name, "a side of its groups is fixed")
            groups.append(_joined(model, touching, name, int(module.groups)))
        except NotCut as reason:
            refused.setdefault(reason.module, reason.why)
    return groups


def _joined(model: nn.Module, parts: list[Group], name: str, units: int) -> Group:
    members: dict[tuple[str, str, str | None], Member] = {}
    for part in parts:
        if part.width % units:
            raise NotCut(name, f"{part.width} coupled channels aren't a multiple of its groups")
        for m in part.members:
            merged = m.positions.reshape(units, -1)
            mask = None if m.kind == "grouped" else m.mask
            members[(m.module, m.axis, m.parameter)] = Member(
                m.module, m.axis, m.kind, merged, mask, m.parameter
            )
    ordered = sorted(
        members.values(), key=lambda m: (m.axis != "out", m.kind not in ("conv", "grouped"))
    )
    first = parts[0]
    exact = all(part.exact for part in parts)
    why = next((part.why for part in parts if part.why), "")
    kind = "streams" if any(part.kind == "streams" for part in parts) else "channels"
    return Group(first.name, kind, units, tuple(ordered), _scope(model, kind, ordered), exact, why)
