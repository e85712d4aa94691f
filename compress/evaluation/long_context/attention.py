"""Where a model looks while it answers: shares of its attention, and how concentrated it is.

Of every layer and head, the attention of the positions that predict the right answer's tokens (the
last of the prompt, then the answer's own but the last), averaged over these positions, heads and
items. The keys are cut into five parts that make up the whole: the first token, the answer where
the prompt says it, the rest of the evidence around it (needle, document, chain), the question with
the answer written so far, and the rest of the context. (MEAP, arXiv:2502.07490, section 5, compares
the share on the answer's span so: 9.4 % against 34.5 %.)

Maps are caught by hooks, one layer's at a time, with the eager implementation of attention for the
last few positions alone where the cache allows, so that a long prompt needs no [T, T] map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoints.anatomy import read_anatomy
from compress.errors import RequestError
from compress.evaluation.long_context.items import Item

PARTS = ("first", "answer", "evidence", "question", "rest")


def part_of_keys(item: Item, total: int) -> Tensor:
    """Return the part that each position belongs to, as an index into PARTS, int64 [total].

    Args:
        item: the prompt.
        total: positions, those of the answer included.
    """
    part = torch.full((total,), PARTS.index("rest"))
    part[item.question :] = PARTS.index("question")
    for first, last in item.evidence:
        part[first:last] = PARTS.index("evidence")
    for first, last in item.values:
        part[first:last] = PARTS.index("answer")
    part[0] = PARTS.index("first")
    return part


def map_statistics(weights: Tensor, part: Tensor, queries: int) -> Tensor:
    """Reduce one item's map in one layer.

    Args:
        weights: [H, Q, S] attention of Q positions to the last S of all; rows sum to 1.
        part: [T] part of each position, T >= S.
        queries: the leading ones of the Q that count (the rest read a padded answer).

    Returns:
        float64 [len(PARTS) + 2]: share of each part, entropy in nats, variance over keys times T^2
        (0 where all keys get the same, so that it doesn't depend on the length).
    """
    rows = weights[:, :queries].double()
    held = part[len(part) - rows.shape[-1] :].to(rows.device)
    shares = torch.stack([rows[..., held == p].sum(-1).mean() for p in range(len(PARTS))])
    entropy = torch.special.entr(rows).sum(-1).mean()
    total = len(part)
    spread = total * rows.square().sum(-1) - rows.sum(-1).square()  # T^2 * variance, by moments
    return torch.cat([shares, torch.stack([entropy, spread.mean()])]).cpu()


class AttentionWatch:
    """Collects the statistics of attention maps over items.

    Args:
        model: its attention is looked for by structure.

    Raises:
        RequestError: the model gives no attention maps, or has no layers of its own.

    Attributes:
        layers: names of the layers that attend.
        found: item key -> float64 [layers, len(PARTS) + 2].
    """

    def __init__(self, model: Any) -> None:
        can_set = getattr(model, "_can_set_attn_implementation", lambda: False)()
        if not can_set and model.config._attn_implementation != "eager":
            raise RequestError(
                f"`--attention`: `{type(model).__name__}` gives no attention maps",
                "leave the option out",
            )
        self._blocks = {
            block.name: model.get_submodule(block.name) for block in read_anatomy(model).blocks
        }
        self.layers: list[str] = []
        self.found: dict[str, Tensor] = {}
        self._rows: dict[str, list[Tensor]] = {}

    @contextmanager
    def during(self, model: Any, items: Sequence[Item], every: int, width: int) -> Iterator[None]:
        """Watch one forward pass.

        Args:
            model: as at the start.
            items: their right answers are in rows 0, every, 2 * every, …; prompts of one length.
            every: rows for each item.
            width: tokens read from the last of the prompt on.

        Raises:
            RequestError: no map was seen.
        """
        kept = model.config._attn_implementation
        self._rows = {}
        with ExitStack() as stack:
            if kept != "eager":
                model.set_attn_implementation("eager")
                stack.callback(model.set_attn_implementation, kept)
            for name, block in self._blocks.items():
                for module in block.modules():
                    hook = module.register_forward_hook(self._hook(name, items, every, width))
                    stack.callback(hook.remove)
            yield
        if not self._rows:
            raise RequestError(
                f"`--attention`: no attention map was seen in `{type(model).__name__}`",
                "leave the option out",
            )
        self.layers = list(self._rows)
        for i, item in enumerate(items):
            self.found[item.key] = torch.stack([rows[i] for rows in self._rows.values()])

    def _hook(self, name: str, items: Sequence[Item], every: int, width: int) -> Any:
        total = len(items[0].prompt) - 1 + width

        def take(module: nn.Module, inputs: Any, output: Any) -> None:
            if name in self._rows or not isinstance(output, tuple):
                return
            for weights in output[1:]:
                if _is_map(weights, len(items) * every, width, total):
                    self._rows[name] = [
                        map_statistics(
                            weights[i * every, :, -width:],
                            part_of_keys(item, total),
                            len(item.answers[0]),
                        )
                        for i, item in enumerate(items)
                    ]

        return take


def _is_map(value: Any, rows: int, width: int, total: int) -> bool:
    """Whether a module's output is attention weights [rows, H, width or total, S], S <= total."""
    if not isinstance(value, Tensor) or value.ndim != 4 or value.shape[0] != rows:
        return False
    if value.shape[2] not in (width, total) or not width <= value.shape[3] <= total:
        return False
    first = value[0].float()  # sums are below 1 where a model lets attention go nowhere
    return bool((first >= 0).all()) and bool((first.sum(-1) < 1.01).all())


def on_answer(found: Tensor) -> float:
    """Return an item's share of attention on the answer, the mean over layers."""
    return float(found[:, PARTS.index("answer")].mean())


def summary(found: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Any]:
    """Return the receipt's entry.

    Args:
        found: a tensor [layers, len(PARTS) + 2] for each item.
        layers: their names.

    Returns:
        {"share": {part: mean over layers}, "share_stderr": {part: over items}, "entropy",
        "variance", "layers": [{"module", "share", "entropy", "variance"}], "n"}.
    """
    values = torch.stack(list(found))  # [N, L, P + 2]
    n = len(values)
    mean, overall = values.mean(0), values.mean((0, 1))
    entry: dict[str, Any] = {"share": _shares(overall)}
    if n > 1:
        error = values.mean(1).std(0) / math.sqrt(n)
        entry["share_stderr"] = _shares(error)
    entry.update(entropy=float(overall[-2]), variance=float(overall[-1]))
    entry["layers"] = [
        {
            "module": name,
            "share": _shares(row),
            "entropy": float(row[-2]),
            "variance": float(row[-1]),
        }
        for name, row in zip(layers, mean)
    ]
    entry["n"] = n
    return entry


def _shares(row: Tensor) -> dict[str, float]:
    return {part: float(value) for part, value in zip(PARTS, row)}
