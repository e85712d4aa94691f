"""`{"kind": "post_norm"}`: a pre-norm decoder layer that normalises after each residual sum.

    h = norm1(x + attention(x));  y = norm2(h + mlp(h))        (Vaswani et al., arXiv:1706.03762)

On disk: the layer's own names and shapes. The layer's class becomes a subclass of what it was,
under the same name: gradient checkpointing, the capture of hidden states and the wrapping of layers
by class or class name go on working.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from compress.checkpoints.edits.base import Fields, Kind, refuse

Forward = Callable[..., Tensor]


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
    attended, _ = self.self_attn(
        hidden_states=hidden_states,
        attention_mask=attention_mask,
        position_ids=position_ids,
        past_key_values=past_key_values,
        use_cache=use_cache,
        position_embeddings=position_embeddings,
        **kwargs,
    )
    hidden_states = self.input_layernorm(hidden_states + attended)
    return self.post_attention_layernorm(hidden_states + self.mlp(hidden_states))


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
    attended, _ = self.attn(
        hidden_states,
        past_key_values=past_key_values,
        attention_mask=attention_mask,
        use_cache=use_cache,
        **kwargs,
    )
    hidden_states = self.ln_1(hidden_states + attended)
    return self.ln_2(hidden_states + self.mlp(hidden_states))


# Whose forward ours replaces. Other models' layers count as these where theirs is the same code.
_FAMILIES: tuple[tuple[str, str, Forward], ...] = (
    ("transformers.models.llama.modeling_llama", "LlamaDecoderLayer", _llama_forward),
    ("transformers.models.mixtral.modeling_mixtral", "MixtralDecoderLayer", _llama_forward),
    ("transformers.models.gpt2.modeling_gpt2", "GPT2Block", _gpt2_forward),
)


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Turn a pre-norm layer into a post-norm one, in place.

    Raises:
        RequestError: the layer's forward is not one of those known to be plain pre-norm.
    """
    if isinstance(old, _PostNorm):
        return old
    cls: Any = type(old)
    if _matching_forward(cls) is None or hasattr(old, "crossattention"):
        refuse("post_norm", old, where, "decoder layers like Llama's and GPT-2's")
    old.__class__ = _post_norm_class(cls)
    return old


class _PostNorm:
    """Marks the layers that this kind made, and lets them be pickled: their class has no name."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self).__mro__[2],), self.__dict__


def is_post_norm(layer: nn.Module) -> bool:
    """Whether a layer was made post-norm by this kind."""
    return isinstance(layer, _PostNorm)


def _rebuild(base: Any) -> nn.Module:
    cls = _post_norm_class(base)
    return cls.__new__(cls)


@functools.cache
def _post_norm_class(base: Any) -> type[nn.Module]:
    body = {"forward": _matching_forward(base), "__module__": base.__module__}
    body["__qualname__"] = base.__qualname__
    return type(base.__name__, (_PostNorm, base), body)


@functools.cache
def _matching_forward(cls: Any) -> Forward | None:
    """Return our forward for a layer class, or None if its own isn't known code."""
    for module, name, forward in _FAMILIES:
        if _code(cls) == _code(getattr(importlib.import_module(module), name)):
            return forward
    return None


def _code(cls: type[nn.Module]) -> tuple[Any, ...]:
    """Return what a class's forward does, apart from its docstring and annotations."""
    code = inspect.unwrap(cls.forward).__code__
    return code.co_code, code.co_names, code.co_varnames


KIND = Kind("post_norm", make)
