"""What every kind of edit shares: its description, and the check of its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import nn

from compress.errors import RequestError, near_names

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """One kind of edit: the shape that it has on disk and the module that it makes.

    Args:
        name: the value of "kind" in the edit.
        make: (old module, fields, module name) -> the new module, or the old one changed in place.
            It lies on the old one's device, the meta device included, in the old one's dtype; its
            parameters are new: whoever asks for the edit fills them, or the checkpoint does.
        required: fields that the edit must have. Fields are whole numbers from 1.
        optional: fields that it may have; left out, the old module's own size stands.
        names: fields that are names of modules instead.
        link: (model, fields, module name) -> None: ties the module to others, once all are made.
        in_place: the module keeps its parts, edited ones among them, and its weights; it then has
            no room for an edit of another kind.
    """

    name: str
    make: Callable[[nn.Module, Fields, str], nn.Module] = field(repr=False)
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    in_place: bool = False
    names: tuple[str, ...] = ()
    link: Callable[[nn.Module, Fields, str], None] | None = field(default=None, repr=False)

    def check(self, fields: Fields, where: str) -> None:
        """Refuse fields that this kind doesn't know, lacks, or that are no positive numbers.

        Raises:
            RequestError: naming the module and the field.
        """
        known = {*self.required, *self.optional}
        for name in fields:
            if name != "kind" and name not in known:
                raise RequestError(
                    f"edit of `{where}`: kind `{self.name}` has no field `{name}`",
                    near_names(name, known or {"none"}),
                )
        for name in self.required:
            if name not in fields:
                raise RequestError(
                    f"edit of `{where}`: kind `{self.name}` needs the field `{name}`",
                    f'such as {{"kind": "{self.name}", "{name}": 64}}',
                )
        for name in known & set(fields):
            value = fields[name]
            if name in self.names:
                if not isinstance(value, str) or not value.isidentifier():
                    raise RequestError(
                        f"edit of `{where}`: `{name}` is {value!r}, no module's name",
                        "correct the plan, or the quantization_config in config.json",
                    )
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RequestError(
                    f"edit of `{where}`: `{name}` is {value!r}, but must be a whole number from 1",
                    "correct the plan, or the quantization_config in config.json",
                )


def refuse(kind: str, old: nn.Module, where: str, wanted: str) -> NoReturn:
    """Say that a kind can't replace a module of this type.

    Raises:
        RequestError: always.
    """
    raise RequestError(
        f"edit of `{where}`: kind `{kind}` can't replace a {type(old).__name__}",
        f"it replaces {wanted}",
    )


def placement(module: nn.Module) -> dict[str, Any]:
    """Return the device and dtype of a module's first floating tensor, as keyword arguments."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return {"device": tensor.device, "dtype": tensor.dtype}
    return {"device": torch.device("cpu"), "dtype": torch.get_default_dtype()}
