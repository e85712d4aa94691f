"""The edits that turn a stock model into a compressed one, in memory and at load alike.

An edit is plain JSON under the name of the module that it changes:
`{"model.layers.0.mlp.down_proj": {"kind": "lowrank", "rank": 96}}`. Names are run-time names of the
model that was edited. One file a kind: what it looks like on disk, and the module that it makes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from compress.checkpoints.edits import (
    attention,
    bitmask,
    branch_norm,
    columns,
    conv,
    deep_norm,
    dense_mlp,
    expert_list,
    gated_dense_mlp,
    identity,
    layer_scale,
    linear,
    lowrank,
    lowrank_up,
    norm,
    normed_input,
    post_norm,
    response_norm,
    sandwich_norm,
    scaled_norm,
)
from compress.checkpoints.edits.base import Fields, Kind
from compress.errors import RequestError, near_names

__all__ = ["KINDS", "Fields", "Kind", "apply", "check", "resolve", "spellings", "swap"]

KINDS: dict[str, Kind] = {
    module.KIND.name: module.KIND
    for module in (
        *(attention, bitmask, branch_norm, columns, conv, deep_norm, dense_mlp, gated_dense_mlp),
        *(expert_list, identity, layer_scale, linear, lowrank, lowrank_up, norm, normed_input),
        *(post_norm, response_norm, sandwich_norm, scaled_norm),
    )
}


def apply(model: PreTrainedModel, edits: Mapping[str, Fields]) -> None:
    """Make the edits and let the model's config and weight conversions tell of them.

    Afterwards `save_pretrained` writes a checkpoint that `from_pretrained` opens (with this package
    imported) and that nothing opens by mistake. Edits add to those that the model has already. A
    module that gets another shape gets new parameters, made as its torch class makes them, except
    a bias that still fits: the caller fills them in, by `model.get_submodule(name)`.

    Args:
        model: in memory or on the meta device.
        edits: module name -> edit.

    Raises:
        RequestError: an unknown module, kind or field, an edit that its module can't have, or a
            module whose weight is tied to another's; the model is then as it was.
    """
    from compress.checkpoints.record import config_of, record  # it imports this package

    check(edits)
    names = resolve(model, edits)
    wanted = {names[name]: dict(fields) for name, fields in edits.items()}
    config = config_of(model)
    for name, fields in (config.modules if config else {}).items():
        for here in spellings(model, name):
            kind = wanted.get(here, {}).get("kind", fields["kind"])
            if kind != fields["kind"] and (kind == "bitmask" or KINDS[fields["kind"]].in_place):
                raise RequestError(
                    f"edit of `{here}`: it has one of kind `{fields['kind']}` already, and no room "
                    f"for `{kind}`",
                    "leave it out: it stays as it is",
                )
            if kind == "conv" == fields["kind"] and here in wanted:  # its window stays as edited
                window: dict[str, Any] = {k: fields[k] for k in ("kernel", "stride") if k in fields}
                wanted[here] = {**window, **wanted[here]}
            factored = wanted.get(here, {}).get("kind") in ("lowrank", "lowrank_up")
            if factored:  # narrowed before: it still is
                size = {key: value for key, value in fields.items() if key in ("in", "out")}
                wanted[here] = {**size, **wanted[here]}
    swap(model, wanted)
    record(model, wanted)


def check(edits: Mapping[str, Fields]) -> None:
    """Refuse edits of an unknown kind or with wrong fields; looks at no model.

    Raises:
        RequestError: naming the module and the field.
    """
    for name, fields in edits.items():
        kind = fields.get("kind") if isinstance(fields, Mapping) else None
        if kind not in KINDS:
            raise RequestError(
                f"edit of `{name}`: unknown kind {kind!r}", near_names(str(kind), KINDS)
            )
        KINDS[kind].check(fields, name)


def resolve(
    model: PreTrainedModel, names: Iterable[str], *, foreign_heads: bool = False
) -> dict[str, str]:
    """Find modules (or parameters) named by the class that was edited in a model of any class.

    A name is taken as it is, else without the base model's prefix, else with it. What lies inside
    another of the named modules may be there only once that one is edited (`swap` looks).

    Args:
        model: the model.
        names: names of modules or parameters.
        foreign_heads: leave out names that belong to a head which this class lacks.

    Returns:
        name -> the name in this model.

    Raises:
        RequestError: a name is unknown; the nearest known one is suggested.
    """
    known = {name for name, _ in model.named_modules(remove_duplicate=False) if name}
    known |= {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name.count(".")):
        match = next((spelt for spelt in spellings(model, name) if spelt in known), None)
        outer = next((other for other in _above(name) if other in found), None)
        if match is None and outer is not None:
            match = found[outer] + name.removeprefix(outer)
        if match is not None:
            found[name] = match
        elif not (foreign_heads and _is_foreign_head(model, name)):
            raise RequestError(
                f"edit of `{name}`: {type(model).__name__} has no such module",
                near_names(name, known),
            )
    return found


def _above(name: str) -> Iterator[str]:
    """Yield the names of the modules that hold a module, the nearest first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def spellings(model: PreTrainedModel, name: str) -> tuple[str, ...]:
    """Return what a module may be called with and without a head: as it is, shorter, longer."""
    prefix = f"{model.base_model_prefix}."
    return name, name.removeprefix(prefix), prefix + name


def swap(model: PreTrainedModel, edits: Mapping[str, Fields]) -> list[str]:
    """Change the modules, parents first; the config is left alone.

    Args:
        model: in memory or on the meta device.
        edits: module name in this model -> edit, as `check` lets pass.

    Returns:
        The names, in the order in which they were changed.

    Raises:
        RequestError: an edit that its module can't have; the model is then as it was.
    """
    order = sorted(edits, key=lambda name: (name.count("."), name))
    taken = _Taken(model)
    done: list[tuple[str, nn.Module, type[nn.Module], dict[str, Any]]] = []
    try:
        for name in order:
            old = _existing(model, name)
            taken.check(name, old)
            done.append((name, old, type(old), _state(old)))
            new = KINDS[edits[name]["kind"]].make(old, edits[name], name)
            if new is not old:
                _settle(old, new)
                model.set_submodule(name, new)
        for name in order:
            link = KINDS[edits[name]["kind"]].link
            if link is not None:
                link(model, edits[name], name)
    except BaseException:
        for name, old, cls, state in reversed(done):
            old.__class__ = cls
            old.__dict__.clear()
            old.__dict__.update(state)
            model.set_submodule(name, old)
        raise
    return order


def _state(module: nn.Module) -> dict[str, Any]:
    """Return a module's own tables of parts and parameters, by which it can be put back."""
    return {
        key: copy.copy(value) if isinstance(value, dict) else value
        for key, value in vars(module).items()
    }


def _existing(model: PreTrainedModel, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise RequestError(
            f"edit of `{name}`: {type(model).__name__} has no such module",
            near_names(name, [known for known, _ in model.named_modules() if known]),
        ) from error


def _is_foreign_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a name that the model lacks can only be part of another class's head."""
    if type(model).__name__ in (getattr(model.config, "architectures", None) or ()):
        return False
    base = model.base_model
    return not name.startswith(f"{model.base_model_prefix}.") and not hasattr(
        base, name.split(".")[0]
    )


class _Taken:
    """What of a model is used in more than one place; looked up once, before any edit."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._places: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self._places.setdefault(module, []).append(name)
        tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
        self._tied = {*tied, *tied.values()}

    def check(self, name: str, module: nn.Module) -> None:
        """Refuse a module that also sits elsewhere, or whose weight another module uses."""
        places = self._places.get(module, [])  # none: an edit of this round made it
        own = [key for key, _ in module.named_parameters(prefix=name) if key in self._tied]
        if len(places) > 1 or own:
            other = next((place for place in places if place != name), None) or own[0]
            raise RequestError(
                f"edit of `{name}`: it is shared (`{other}`), and the other place would be lost",
                "leave it out, or set tie_word_embeddings to false before saving the source model",
            )


def _settle(old: nn.Module, new: nn.Module) -> None:
    """Carry over what an edit doesn't change: the mode, what trains, a bias that still fits."""
    new.train(old.training)
    if not any(parameter.requires_grad for parameter in old.parameters()):
        new.requires_grad_(False)
    before, after = getattr(old, "bias", None), getattr(new, "bias", None)
    if not isinstance(before, nn.Parameter) or not isinstance(after, nn.Parameter):
        return
    if before.shape == after.shape and not before.is_meta:
        with torch.no_grad():
            after.copy_(before)
