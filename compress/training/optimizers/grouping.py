"""Which parameters of a model are hidden matrices, and the groups that optimizers want of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Named = Iterable[tuple[str, Tensor]]

_EMBEDDINGS = ("embed", "embd", "wte", "wpe")
_HEADS = ("lm_head", "embed_out", "output_projection", "classifier", "score")
_ROUTERS = ("router", "gate")


@dataclass(frozen=True)
class Parameters:
    """A model's trained parameters by kind, each a list of (name, parameter).

    Attributes:
        hidden: matrices between embedding and head, stacked experts too.
        tables: embeddings, heads, routers.
        vectors: norms and biases.
    """

    hidden: list[tuple[str, Any]]
    tables: list[tuple[str, Any]]
    vectors: list[tuple[str, Any]]

    def groups(self, weight_decay: float, **hidden: Any) -> list[dict[str, Any]]:
        """Three groups at most; vectors don't decay.

        Args:
            weight_decay: of the matrices.
            hidden: options of the hidden matrices' group alone.
        """
        kinds: list[tuple[list[tuple[str, Any]], dict[str, Any]]] = [
            (self.hidden, {"weight_decay": weight_decay, **hidden}),
            (self.tables, {"weight_decay": weight_decay}),
            (self.vectors, {"weight_decay": 0.0}),
        ]
        return [{"params": found, **options} for found, options in kinds if found]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from (*self.hidden, *self.tables, *self.vectors)


def sort_parameters(source: nn.Module | Named) -> Parameters:
    """Sort the parameters that are trained.

    Args:
        source: a model, whose modules tell what is an embedding; or (name, parameter) pairs, of
            which only the names can tell.
    """
    tables = _tables(source) if isinstance(source, nn.Module) else set()
    named = source.named_parameters() if isinstance(source, nn.Module) else source
    found: dict[str, list[tuple[str, Any]]] = {"hidden": [], "tables": [], "vectors": []}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        kind = "hidden"
        if parameter.ndim < 2:
            kind = "vectors"
        elif id(parameter) in tables or _named_a_table(name):
            kind = "tables"
        found[kind].append((name, parameter))
    return Parameters(**found)


def _tables(model: nn.Module) -> set[int]:
    found = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    whole: Any = model
    head = whole.get_output_embeddings() if hasattr(whole, "get_output_embeddings") else None
    weight = getattr(head, "weight", None)
    if weight is not None:
        found.add(id(weight))
    return found


def _named_a_table(name: str) -> bool:
    parts = name.split(".")[:-1]  # without `weight`
    if any(part in _HEADS for part in parts) or (parts and parts[-1] in _ROUTERS):
        return True
    return any(word in part for part in parts for word in _EMBEDDINGS)
