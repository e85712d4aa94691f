"""The passes over memory: one kernel that clips, updates moments and weights at once.

On a CPU native.cpp does it, in one call. Elsewhere torch.compile: a call then handles some tensors
of one size, which is a variable of the graph: a few graphs, for 16, 4 and 1 tensors, serve every
model, learning rate and step. One size, since a graph fetches each of its variables through Python:
with 16 of them that cost more than anything else of a call. All scalars of a step reach the kernel
in one small tensor per weight tensor.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.training.optimizers import native

BUNDLES = (16, 4, 1)
"""Tensors in one call, the most that there are of a size first; each has a graph of its own."""
COMPILE_FROM = 10_000_000
"""Parameters from which `compile="auto"` makes graphs: below, the half minute isn't won back."""

Kernel = Callable[..., None]
# Which of a kernel's arguments are its state and its gradient, by the kernel's name.
_NATIVE = {
    **dict.fromkeys(("spam", "spam_blocks", "stable_scale", "stable_clamp"), (2, 1)),
    "spam_count": (1, 0),
    "watch": (1, 0),
}

# Columns of the scalars of one tensor.
RATE, ROOT, EPS, BEFORE, AFTER, W1, W2, CLIP, CAP, GAIN, TAKEN = range(11)
SCALARS = 11


def adam(p: Tensor, c: Tensor, m: Tensor, v: Tensor, s: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One Adam step with a gradient `c` already clipped: new weights and moments.

    m' = m + w1 (c - m),  v' = v + w2 (c² - v),
    p' = after (before p - rate m' / (root sqrt(v') + eps))
    """
    new_m = m + s[W1] * (c - m)
    new_v = v + s[W2] * (c * c - v)
    moved = p * s[BEFORE] - s[RATE] * new_m / (new_v.sqrt() * s[ROOT] + s[EPS])
    return moved * s[AFTER], new_m, new_v


def spam(p: Tensor, g: Tensor, m: Tensor, v: Tensor, scalars: Tensor) -> None:
    """SPAM on one tensor, in place: entries above CLIP sqrt(v), or above CAP, are cut to that.

    An entry whose gradient isn't finite keeps its weight and moments; one with v = 0 isn't cut.
    """
    s = scalars.unbind()
    new, taken = _spam(p, g.to(m.dtype), m, v, s)
    for old, value in zip((p, m, v), new):
        old.copy_(torch.where(taken, value, old))


def spam_blocks(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, scalars: Tensor, blocks: Tensor
) -> None:
    """SPAM on chosen blocks of one tensor: p and g [all blocks, block], m and v [chosen, block]."""
    s = scalars.unbind()
    old = p[blocks]
    new, taken = _spam(old, g[blocks].to(m.dtype), m, v, s)
    p[blocks] = torch.where(taken, new[0], old)
    m.copy_(torch.where(taken, new[1], m))
    v.copy_(torch.where(taken, new[2], v))


def _spam(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, s: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Tensor]:
    size = g.abs()
    limit, over = spam_limit(size, v, s)
    clipped = torch.where(over, torch.where(g < 0, -limit, limit), g)
    return adam(p, clipped, m, v, s), size < float("inf")


def spam_limit(size: Tensor, v: Tensor, s: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The largest |g| that SPAM lets through at each entry, and which entries are above it."""
    limit = torch.minimum(v.sqrt() * s[CLIP], s[CAP])
    return limit, (size > limit) & (v > 0)  # inf * sqrt(0) is NaN: nothing is above that either


def spam_count(g: Tensor, v: Tensor, scalars: Tensor, count: Tensor) -> None:
    """Fill `count`, int64 and 0-d, with the number of entries that `spam` would cut."""
    size = g.to(v.dtype).abs()
    over = spam_limit(size, v, scalars.unbind())[1] & (size < float("inf"))
    count.copy_(over.sum())


def stable_scale(p: Tensor, g: Tensor, m: Tensor, v: Tensor, scalars: Tensor) -> None:
    """Stable-SPAM on one tensor, entries above CLIP scaled by CAP, all then by GAIN."""
    s = scalars.unbind()
    g = g.to(m.dtype)
    _stable(p, torch.where(g.abs() > s[CLIP], g * s[CAP], g), m, v, s)


def stable_clamp(p: Tensor, g: Tensor, m: Tensor, v: Tensor, scalars: Tensor) -> None:
    """Stable-SPAM on one tensor, entries above CLIP cut to that, all then times GAIN."""
    s = scalars.unbind()
    _stable(p, torch.clamp(g.to(m.dtype), -s[CLIP], s[CLIP]), m, v, s)


def _stable(p: Tensor, clipped: Tensor, m: Tensor, v: Tensor, s: Sequence[Tensor]) -> None:
    taken = s[TAKEN] > 0
    for old, value in zip((p, m, v), adam(p, clipped * s[GAIN], m, v, s)):
        old.copy_(torch.where(taken, value, old))


def clipped_square(g: Tensor, top: Any, factor: Any, clamp: bool) -> Tensor:
    """The sum of squares after entries above `top` are clamped to it, or times `factor`; 0-d."""
    size = g.to(torch.promote_types(g.dtype, torch.float32)).abs()
    clipped = size.clamp(max=top) if clamp else torch.where(size > top, size * factor, size)
    return (clipped * clipped).sum()


def square_scaled(g: Tensor, scalars: Tensor, total: Tensor) -> None:
    """Fill `total` with the sum of squares after entries above CLIP are scaled by CAP."""
    s = scalars.unbind()
    total.copy_(clipped_square(g, s[CLIP], s[CAP], False).expand_as(total))


def square_clamped(g: Tensor, scalars: Tensor, total: Tensor) -> None:
    """Fill `total` with the sum of squares after entries above CLIP are cut to that."""
    s = scalars.unbind()
    total.copy_(clipped_square(g, s[CLIP], s[CAP], True).expand_as(total))


class Engine:
    """Runs kernels over lists of tensors: in native code, as compiled graphs, or one by one.

    Args:
        compiling: True, False, or "auto": native code wherever it can be built, graphs from
            COMPILE_FROM parameters on.
        parameters: how many the optimizer has.

    Attributes:
        fault: why the compiler couldn't be used, None if it could or wasn't asked.
        route: how the last call ran: native, compiled, fused or plain; None before the first.
    """

    def __init__(self, compiling: bool | str, parameters: int) -> None:
        self._native = compiling is not False
        self._wanted = compiling is True or (compiling == "auto" and parameters >= COMPILE_FROM)
        self._compiled: dict[Any, Kernel | None] = {}
        self.fault: str | None = None
        self.route: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}  # graphs can't be copied or pickled

    def is_native(self, state: Tensor, gradient: Tensor) -> bool:
        """Whether native code takes states and gradients like these."""
        if not self._native or not native.fits(state, gradient):
            return False
        try:
            native.library()
        except native.NoCompiler:
            self._native = False  # a graph may be compiled yet, or will say what is wrong
        return self._native

    def fast(self, kernel: Kernel, lists: Sequence[Sequence[Tensor]]) -> bool:
        """Whether `run` has more than plain operations for these lists."""
        if self._in_native(kernel, lists):
            return True
        return self._graph(kernel, lists, _bundles(lists)[0]) is not None

    def _in_native(self, kernel: Kernel, lists: Sequence[Sequence[Tensor]]) -> bool:
        if kernel.__name__ not in _NATIVE:
            return False
        state, gradient = _NATIVE[kernel.__name__]
        return self.is_native(lists[state][0], lists[gradient][0])

    def _graph(
        self, kernel: Kernel, lists: Sequence[Sequence[Tensor]], places: list[int]
    ) -> Kernel | None:
        if not self._wanted or self.fault is not None:
            return None
        first = [tensors[0] for tensors in lists]
        key = (kernel, len(places), first[0].device, *((t.dtype, *_form(t)) for t in first))
        if key not in self._compiled:
            self._compiled[key] = self._compile(kernel, first, len(places))
        return self._compiled[key]

    def _compile(self, kernel: Kernel, first: Sequence[Tensor], count: int) -> Kernel | None:
        graph = torch.compile(_bundle(kernel), fullgraph=True, dynamic=True)
        try:
            rows = _ROWS.get(kernel, {})
            graph([_dummies(t, rows.get(place, 4096), count) for place, t in enumerate(first)])
        except Exception as fault:  # whatever a missing or broken compiler raises; on dummies only
            self.fault = f"{type(fault).__name__}: {str(fault).strip().splitlines()[0]}"
            warnings.warn(
                f"the optimizer's kernels can't be compiled ({self.fault}); slower ones are used",
                stacklevel=2,
            )
            return None
        return graph

    def run(self, kernel: Kernel, lists: Sequence[Sequence[Tensor]]) -> None:
        """Call kernel(*tensors) for the first of each list, the second, and so on, in any order.

        Args:
            kernel: writes into its arguments and returns nothing.
            lists: equally long; contiguous tensors, alike within a list in dtype, device and all
                dimensions but the first.
        """
        if self._in_native(kernel, lists):
            native.run(kernel.__name__, lists, *_NATIVE[kernel.__name__])
            self.route = "native"
            return
        for places in _bundles(lists):
            graph = self._graph(kernel, lists, places)
            parts = [[tensors[place] for place in places] for tensors in lists]
            self.route = "plain" if graph is None else "compiled"
            if graph is not None:
                graph(parts)
                continue
            for tensors in zip(*parts):
                kernel(*tensors)


def _bundles(lists: Sequence[Sequence[Tensor]]) -> list[list[int]]:
    """Which places go together in a call: those of one size, by BUNDLES."""
    alike: dict[Any, list[int]] = {}
    sizes = [[t.shape[0] for t in tensors] for tensors in lists]
    for place, key in enumerate(zip(*sizes)):
        alike.setdefault(key, []).append(place)
    found = []
    for places in alike.values():
        for size in BUNDLES:
            while len(places) >= size:
                found.append(places[:size])
                places = places[size:]
    return found


def _form(tensor: Tensor) -> tuple[int, ...]:
    return (tensor.ndim, *tensor.shape[1:])


def _bundle(kernel: Kernel) -> Callable[[list[list[Tensor]]], None]:
    def bundle(parts: list[list[Tensor]]) -> None:
        for tensors in zip(*parts):
            kernel(*tensors)

    # Graphs are kept, and counted against a limit, by code object: each kernel has its own.
    code = bundle.__code__.replace(co_name=f"bundle_{id(bundle)}")
    return types.FunctionType(code, globals(), "bundle", None, bundle.__closure__)


# Where arguments of a kernel differ in their first dimension, so must their stand-ins. A graph of a
# reduction is for tensors longer than 4096 only if its stand-ins are.
_ROWS: dict[Kernel, dict[int, int]] = {
    spam_blocks: {0: 16384, 1: 16384},
    square_scaled: {0: 16384},
    square_clamped: {0: 16384},
}


def _dummies(like: Tensor, rows: int, count: int) -> list[Tensor]:
    """Stand-ins of one size, on which a graph is made."""
    shape = like.shape if like.shape == (SCALARS,) else (rows, *like.shape[1:])
    return [torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(count)]
