"""Decoder layers whose norms sit elsewhere: what the kinds that move norms share.

Such a kind keeps a layer's modules and gives the layer a subclass of its own class, under the same
name: gradient checkpointing, the capture of hidden states and the wrapping of layers by class or
class name go on working. Which layers can be changed is told by their code: a layer whose forward
is, instruction for instruction, that of one of the known plain pre-norm layers.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from compress.checkpoints.edits.base import refuse
from compress.checkpoints.edits.norm import make as make_norm
from compress.errors import RequestError

Forward = Callable[..., Tensor]
Branch = Callable[[Tensor], Tensor]


class Parts(NamedTuple):
    """What a layer is made of, as functions of hidden states [B, T, hidden]."""

    attention: Branch
    mlp: Branch
    norm1: Branch
    """The stock layer's norm before attention."""
    norm2: Branch
    """The stock layer's norm before the MLP."""


Residual = Callable[[Any, Tensor, Parts], Tensor]
"""(layer, hidden states, parts) -> the layer's output: how a kind puts the parts together."""


def _llama_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = False,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Run one layer on hidden states [B, T, hidden]."""

    def attention(inputs: Tensor) -> Tensor:
        return self.self_attn(
            hidden_states=inputs,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )[0]

    norms = self.input_layernorm, self.post_attention_layernorm
    return self.residual(hidden_states, Parts(attention, self.mlp, *norms))


def _gpt2_forward(
    self: Any,
    hidden_states: Tensor,
    past_key_values: Any = None,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    use_cache: bool | None = False,
    **kwargs: Any,
) -> Tensor:
    """Run one layer on hidden states [B, T, hidden]."""

    def attention(inputs: Tensor) -> Tensor:
        return self.attn(
            inputs,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            use_cache=use_cache,
            **kwargs,
        )[0]

    return self.residual(hidden_states, Parts(attention, self.mlp, self.ln_1, self.ln_2))


def _gpt_neox_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    use_cache: bool | None = False,
    layer_past: Any = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Run one layer on hidden states [B, T, hidden]."""

    def attention(inputs: Tensor) -> Tensor:
        attended, _ = self.attention(
            inputs,
            attention_mask=attention_mask,
            position_ids=position_ids,
            layer_past=layer_past,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        return self.post_attention_dropout(attended)

    def mlp(inputs: Tensor) -> Tensor:
        return self.post_mlp_dropout(self.mlp(inputs))

    norms = self.input_layernorm, self.post_attention_layernorm
    return self.residual(hidden_states, Parts(attention, mlp, *norms))


class Family(NamedTuple):
    """A known plain pre-norm layer, our forward for it, and the names of its two norms."""

    module: str
    layer: str
    forward: Forward
    norms: tuple[str, str]


_LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")
# Other models' layers count as these where theirs is the same code: some 80 classes do.
_FAMILIES = (
    Family("llama.modeling_llama", "LlamaDecoderLayer", _llama_forward, _LLAMA_NORMS),
    Family("mixtral.modeling_mixtral", "MixtralDecoderLayer", _llama_forward, _LLAMA_NORMS),
    Family("gpt2.modeling_gpt2", "GPT2Block", _gpt2_forward, ("ln_1", "ln_2")),
    Family("gpt_neox.modeling_gpt_neox", "GPTNeoXLayer", _gpt_neox_forward, _LLAMA_NORMS),
)
_WANTED = "decoder layers that run like those of Llama, Qwen, Mistral, GPT-2 or sequential GPT-NeoX"


class Placed:
    """Marks layers that a kind of this module made, and lets them be pickled and copied."""

    kind: str

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.kind, _stock(type(self))), self.__dict__


def is_placed(layer: nn.Module) -> bool:
    """Whether a layer's norms were moved by an edit."""
    return isinstance(layer, Placed)


def kind_of(layer: nn.Module) -> str | None:
    """Return the kind of the edit that moved a layer's norms, None for a layer as it was."""
    return layer.kind if isinstance(layer, Placed) else None


def family_of(layer: nn.Module) -> Family | None:
    """Return the known layer whose code a layer (edited or not) runs, None for other code."""
    cls: Any = type(layer)
    return _family(_stock(cls) if isinstance(layer, Placed) else cls)


def _stock(cls: Any) -> Any:
    """Return the class that was changed."""
    return cls.__mro__[cls.__mro__.index(Placed) + 1]


_RESIDUALS: dict[str, Residual] = {}


def register(kind: str, residual: Residual) -> None:
    """Tell how a kind's layers put their parts together."""
    _RESIDUALS[kind] = residual


def place(old: nn.Module, kind: str, where: str) -> nn.Module:
    """Turn a plain pre-norm layer into one of another kind, in place.

    Args:
        old: a decoder layer.
        kind: a registered kind.
        where: the layer's name, for errors.

    Raises:
        RequestError: the layer's forward is not one of those known to be plain pre-norm, its
            attention and MLP run side by side, or its norms were moved otherwise already.
    """
    if isinstance(old, Placed):
        if old.kind == kind:
            return old
        raise RequestError(
            f"edit of `{where}`: its norms are placed as `{old.kind}` already, not as pre-norm",
            "place norms on the stock model",
        )
    if getattr(old, "use_parallel_residual", False):
        raise RequestError(
            f"edit of `{where}`: attention and MLP of this {type(old).__name__} run side by side "
            "on one input (parallel residual), so their norms can't be moved",
            "set use_parallel_residual to false in the config, or use LayerNorm Scaling",
        )
    if family_of(old) is None or hasattr(old, "crossattention"):
        refuse(kind, old, where, _WANTED)
    cls: Any = type(old)
    old.__class__ = _placed_class(kind, cls)
    return old


def add_norms(layer: nn.Module, where: str, *names: str) -> None:
    """Give a layer further norms like its own first one, weights 1 and biases 0.

    Args:
        layer: a layer of a known family; norms that it has already stay.
        where: its name, for errors.
        names: what the norms are called.
    """
    family = family_of(layer)
    assert family is not None
    own: Any = layer.get_submodule(family.norms[0])
    for name in names:
        if not hasattr(layer, name):
            width = int(own.weight.shape[0]) if getattr(own, "weight", None) is not None else 0
            fresh = make_norm(own, {"width": width}, where) if width else copy.deepcopy(own)
            layer.add_module(name, fresh)


def _rebuild(kind: str, base: Any) -> nn.Module:
    cls = _placed_class(kind, base)
    return cls.__new__(cls)


@functools.cache
def _placed_class(kind: str, base: Any) -> type[nn.Module]:
    family = _family(base)
    assert family is not None
    body = {"forward": family.forward, "residual": _RESIDUALS[kind], "kind": kind}
    body |= {"__module__": base.__module__, "__qualname__": base.__qualname__}
    return type(base.__name__, (Placed, base), body)


@functools.cache
def _family(cls: Any) -> Family | None:
    for family in _FAMILIES:
        known = importlib.import_module(f"transformers.models.{family.module}")
        if _code(cls) == _code(getattr(known, family.layer)):
            return family
    return None


def _code(cls: type[nn.Module]) -> tuple[Any, ...]:
    """Return what a class's forward does, apart from its docstring and annotations."""
    code = inspect.unwrap(cls.forward).__code__
    return code.co_code, code.co_names, code.co_varnames
