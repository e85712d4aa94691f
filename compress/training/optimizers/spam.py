"""SPAM: Adam that cuts gradient spikes and forgets its moments now and then (arXiv 2501.06842)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from compress.training.optimizers import kernels, reductions
from compress.training.optimizers.base import (
    BIASES,
    BadOption,
    HealthyOptimizer,
    check_choice,
    check_common,
    check_range,
    interval,
    local,
    master_of,
    names_of,
    on_device,
    state_dtype,
    zeros_like,
)
from compress.training.optimizers.blocks import block_size, draw_blocks, parameter_key
from compress.training.optimizers.fused import fused_fits, spam_fused


class _Item:
    """A parameter in one step: this process's part of it, of its gradient and of its moments."""

    __slots__ = ("gradient", "group", "m", "parameter", "state", "step", "target", "v")

    def __init__(
        self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any], step: float
    ) -> None:
        self.parameter, self.state, self.group, self.step = parameter, state, group, step
        self.target = local(state.get("master", parameter))
        self.gradient = local(parameter.grad)  # type: ignore[arg-type]
        self.m, self.v = local(state["exp_avg"]), local(state["exp_avg_sq"])

    def route(self) -> str:
        """How it is stepped: blocks, strided (as it lies), or flat."""
        if "blocks" in self.state:
            return "blocks" if self.parameter.is_contiguous() else "strided"
        p = local(self.parameter)
        contiguous = p.is_contiguous() and self.gradient.is_contiguous() and self.m.is_contiguous()
        return "flat" if contiguous and p.numel() >= 2 else "strided"


class SPAM(HealthyOptimizer):
    """Spike-aware Adam with momentum reset, and with sparse momentum where `density` is below 1.

    Step n = 1, 2, … with c = n mod reset_every and k the steps since the reset, this one included:

    1. c = 0: m = v = 0, and the entries that move are drawn anew.
    2. g_i = sign(g_i) min(|g_i|, sqrt(theta v_i / (1 - beta2^(k-1)))) where v_i > 0 and
       k - 1 >= settle. An entry that had no gradient yet is never cut.
    3. Adam with k in both bias corrections, its learning rate times
       s = 1 - 0.495 (1 + cos(pi c / (reset_warmup + 1))) for c < reset_warmup,
       after the first reset; else 1.

    A gradient that isn't finite leaves its entry's weight and moments as they are.

    While v settles after a reset, entries are cut to sqrt(theta) times the root of the tensor's
    mean v of before the reset, lest one spike rule v until the next.

    `bias="legacy"` is the published code: k counts on over resets (steps are up to 2.7 times lr
    after one), v isn't corrected in 2, eps is added to the uncorrected sqrt(v), nothing is cut
    while v settles, weight decay comes last. Its slips are not kept: entries with v = 0 are not
    frozen, `p.grad` stays, weight decay acts with `density` too.

    State per parameter: moments, two float32 (8 bytes); times density where that is below 1.

    Args:
        params: parameters, (name, parameter) pairs, or groups of either with their own options.
        lr: learning rate, > 0.
        betas, eps: as Adam's.
        weight_decay: decoupled: p times 1 - lr * weight_decay, not scaled by s; acts on the
            entries that move.
        theta: an entry is a spike above theta times its v; infinity: none is.
        reset_every: steps between resets; 0: never.
        reset_warmup: steps of warm-up after a reset.
        settle: steps after a reset without clipping.
        density: share of each matrix (2-D or more) that has moments and moves between two resets,
            in blocks of 128 entries. Embeddings, heads and routers want 1: give them a group.
        bias: restart or legacy.
        seed: of the entries drawn.
        compile: True, False or "auto". On a CPU with a C++ compiler the passes are native code,
            built at first use; elsewhere graphs of torch.compile, with "auto" from 10 million
            parameters on.

    Raises:
        BadOption: a RequestError and ValueError, an option out of its range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        theta: float = 5000.0,
        reset_every: int | None = 500,
        reset_warmup: int = 150,
        settle: int = 20,
        density: float = 1.0,
        bias: str = "restart",
        seed: int = 0,
        compile: bool | str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "theta": theta,
            "reset_every": reset_every,
            "reset_warmup": reset_warmup,
            "settle": settle,
            "density": density,
            "bias": bias,
            "seed": seed,
            "calls": 0,
        }
        super().__init__(params, defaults)
        self.counting = False
        self._engine = kernels.Engine(compile, sum(p.numel() for p in self._parameters()))

    def _check(self, group: dict[str, Any]) -> None:
        _check(group)

    def _advance(self, group: dict[str, Any], waiting: dict[Any, list[Any]]) -> None:
        every, calls = group["reset_every"], group["calls"]
        if every and calls % every == 0:
            self._reset(group)
        found = [
            (p, self.state[p] or self._start(group, place, p))
            for place, p in self._with_gradient(group)
        ]
        counts = [state["step"] for _, state in found]
        if not counts:
            return
        torch._foreach_add_(counts, 1)
        for (p, state), step in zip(found, torch.stack(counts).tolist()):
            item = _Item(p, state, group, step)
            if item.target.numel() == 0:
                continue  # but it has a state, of which each process must have a part
            like = item.m
            key = (
                *(like.dtype, like.device, p.dtype, item.gradient.dtype, _width(state)),
                *("reference" in state, item.route(), "master" in state),
            )
            waiting.setdefault(key, []).append(item)

    def _finish(self, waiting: dict[Any, list[Any]]) -> None:
        for (*_, route, _), items in waiting.items():
            self._update(route, items)

    def _start(self, group: dict[str, Any], place: int, p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        state["step"] = torch.zeros((), dtype=torch.float32)
        if group["density"] < 1 and p.ndim >= 2:
            if isinstance(p, DTensor):
                raise BadOption(
                    "density is below 1, and a parameter is sharded over processes",
                    "leave --density out with --fsdp: sharding divides the state already",
                )
            self._draw(group, place, p, state)
        else:
            state["exp_avg"], state["exp_avg_sq"] = zeros_like(p), zeros_like(p)
            master = master_of(p)
            if master is not None:
                state["master"] = master
        return state

    def _draw(self, group: dict[str, Any], place: int, p: Tensor, state: dict[str, Any]) -> None:
        """Draw the blocks of a matrix that move until the next reset; moments start at 0."""
        every = group["reset_every"]
        resets = group["calls"] // every if every else 0
        names = names_of(group)
        before = sum(len(g["params"]) for g in self._groups_before(group))
        key = parameter_key(list(names)[place] if names else None, before + place)
        chosen = draw_blocks(p, group["density"], group["seed"], key, resets)
        width = block_size(p)
        state["blocks"] = chosen
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros(len(chosen), width, dtype=state_dtype(p), device=p.device)
        if p.dtype != state_dtype(p):
            state["master"] = p.detach().reshape(-1, width)[chosen].to(state_dtype(p))

    def _groups_before(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        place = next(i for i, other in enumerate(self.param_groups) if other is group)
        return self.param_groups[:place]

    def _reset(self, group: dict[str, Any]) -> None:
        beta2, restart = group["betas"][1], group["bias"] == "restart"
        started = [(i, p, self.state[p]) for i, p in enumerate(group["params"]) if p in self.state]
        if restart:
            _remember([(p, state) for _, p, state in started], beta2)
        for place, p, state in started:
            if restart:
                state["step"].zero_()
            if "blocks" in state:
                self._draw(group, place, p, state)
            else:
                torch._foreach_zero_([local(state["exp_avg"]), local(state["exp_avg_sq"])])

    def _update(self, route: str, items: list[_Item]) -> None:
        scalars = _scalars(items)
        if self.counting:
            _count(items, scalars, self._engine)
        if "blocks" in items[0].state:
            self._update_blocks(items, scalars)
            return
        flat = [
            [getattr(item, name) for item in items] for name in ("target", "gradient", "m", "v")
        ]
        if route == "flat":
            flat = [[t if t.ndim == 1 else t.view(-1) for t in tensors] for tensors in flat]
        lists = [*flat, scalars]
        if route == "strided":
            for tensors in zip(*lists):
                kernels.spam(*tensors)
        elif fused_fits(*flat) and not self._engine.fast(kernels.spam, lists):
            _run_fused(items, flat, scalars)
            self._engine.route = "fused"
        else:
            self._engine.run(kernels.spam, lists)
        if "master" in items[0].state:
            torch._foreach_copy_(
                [local(item.parameter) for item in items], [item.target for item in items]
            )

    def _update_blocks(self, items: list[_Item], scalars: list[Tensor]) -> None:
        width = items[0].m.shape[1]
        chosen = [item.state["blocks"] for item in items]
        m, v = [item.m for item in items], [item.v for item in items]
        gradients = [item.gradient.reshape(-1, width) for item in items]
        if "master" in items[0].state:
            masters = [item.target for item in items]
            picked = [g[blocks] for g, blocks in zip(gradients, chosen)]
            self._engine.run(kernels.spam, [masters, picked, m, v, scalars])
            moved = masters
        elif all(item.parameter.is_contiguous() for item in items):
            views = [item.target.view(-1, width) for item in items]
            self._engine.run(kernels.spam_blocks, [views, gradients, m, v, scalars, chosen])
            return
        else:
            whole = [item.parameter.reshape(-1, width) for item in items]
            moved = [rows[blocks] for rows, blocks in zip(whole, chosen)]
            for tensors in zip(moved, [g[b] for g, b in zip(gradients, chosen)], m, v, scalars):
                kernels.spam(*tensors)
        for item, blocks, rows in zip(items, chosen, moved):
            p = item.parameter
            reshaped = p.reshape(-1, width)
            reshaped[blocks] = rows.to(p.dtype)
            if not p.is_contiguous():
                p.copy_(reshaped.view(p.shape))

    def report(self) -> dict[str, float]:
        """What to log: waits for the device, so call it at logging steps only.

        Returns:
            "clipped", entries cut in steps taken while `counting` was set, this process's part;
            "resets" so far and "scale", the s of the last step, of the first group.
        """
        counts = [s["clipped"] for s in self.state.values() if "clipped" in s]
        first = self.param_groups[0]
        every = first["reset_every"]
        return {
            "clipped": float(sum(int(c) for c in counts)),
            "resets": float(first["calls"] // every if every else 0),
            "scale": warmup_scale(first["calls"], every, first["reset_warmup"]),
        }


def _scalars(items: list[_Item]) -> list[Tensor]:
    """The kernel's scalars, a tensor for each item: a graph wants different ones."""
    made: dict[Any, tuple[list[float], float]] = {}
    for item in items:
        key = id(item.group), item.step
        if key not in made:
            made[key] = spam_scalars(item.group, item.step)
    found = [made[id(item.group), item.step] for item in items]
    rows = on_device([row for row, _ in found], items[0].m)
    caps = [cap for _, cap in found]
    if min(caps) < math.inf and "reference" in items[0].state:
        limits = torch.stack([item.state["reference"] for item in items]).to(rows.dtype)
        rows[:, kernels.CAP] = on_device([caps], items[0].m)[0] * limits
    return list(rows.unbind())


def _run_fused(items: list[_Item], flat: list[list[Tensor]], scalars: list[Tensor]) -> None:
    """Step without a compiler, the items of one group and step at a time."""
    places: dict[Any, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault((id(item.group), item.step), []).append(place)
    for some in places.values():
        group, step = items[some[0]].group, items[some[0]].step
        lists = [[tensors[place] for place in some] for tensors in flat]
        own = [scalars[place] for place in some]
        spam_fused(lists, spam_scalars(group, step)[0], own, step)


def _count(items: list[_Item], scalars: list[Tensor], engine: kernels.Engine) -> None:
    """Add the entries that this step cuts to each parameter's count."""
    gradients, seconds = [item.gradient for item in items], [item.v for item in items]
    for place, item in enumerate(items):
        if "blocks" in item.state:
            rows = item.gradient.reshape(-1, item.v.shape[1])
            gradients[place] = rows[item.state["blocks"]]
    found = [torch.zeros((), dtype=torch.int64, device=g.device) for g in gradients]
    lists: list[list[Tensor]] = [gradients, seconds, scalars, found]
    if all(t.is_contiguous() for t in (*gradients, *seconds)):
        lists[:2] = [[t.view(-1) for t in tensors] for tensors in (gradients, seconds)]
    if lists[0] is not gradients and engine.is_native(seconds[0], gradients[0]):
        engine.run(kernels.spam_count, lists)
    else:
        for tensors in zip(*lists):
            kernels.spam_count(*tensors)
    for item, new in zip(items, found):
        old = item.state.get("clipped")
        item.state["clipped"] = new if old is None else old + new


def warmup_scale(calls: int, every: int, warmup: int) -> float:
    """The factor s of the update in step number `calls`: 1 before the first reset.

    s(c) = 1 - 0.495 (1 + cos(pi c / (warmup + 1))) for c < warmup, c the steps since the reset.
    """
    since = calls % every if every else calls
    if not every or calls < every or since >= warmup:
        return 1.0
    return 1.0 - 0.495 * (1.0 + math.cos(math.pi * since / (warmup + 1)))


def spam_scalars(group: dict[str, Any], step: float) -> tuple[list[float], float]:
    """The scalars of a step, by the columns of `kernels`, and the factor of the settling limit.

    Args:
        group: options and `calls`.
        step: of the bias corrections, from 1.
    """
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    every, calls, settle = group["reset_every"], group["calls"], group["settle"]
    scale = warmup_scale(calls, every, group["reset_warmup"])
    first, second = 1.0 - beta1**step, math.sqrt(1.0 - beta2**step)
    decay, theta = 1.0 - lr * group["weight_decay"], float(group["theta"])
    row = [0.0] * kernels.SCALARS
    cap = math.inf
    if group["bias"] == "legacy":
        row[kernels.RATE], row[kernels.ROOT] = lr * scale * second / first, 1.0
        row[kernels.BEFORE], row[kernels.AFTER] = 1.0, decay
        settled = calls >= settle and (calls % every if every else calls) >= settle
        clip = math.sqrt(theta) if settled else math.inf
    else:
        row[kernels.RATE], row[kernels.ROOT] = lr * scale / first, 1.0 / second
        row[kernels.BEFORE], row[kernels.AFTER] = decay, 1.0
        settled = step - 1 >= max(settle, 1)
        clip = math.sqrt(theta / (1.0 - beta2 ** (step - 1))) if settled else math.inf
        cap = math.inf if settled else math.sqrt(theta)
    row[kernels.EPS], row[kernels.W1], row[kernels.W2] = group["eps"], 1.0 - beta1, 1.0 - beta2
    row[kernels.CLIP], row[kernels.CAP] = clip, math.inf
    return row, cap


def _remember(started: list[tuple[Tensor, dict[str, Any]]], beta2: float) -> None:
    """Keep the roots of the tensors' mean second moments, as limits while the next ones settle."""
    stepped = [(p, state) for p, state in started if float(state["step"])]
    if not stepped:
        return
    means = reductions.means([(p, local(state["exp_avg_sq"])) for p, state in stepped])
    for (_, state), mean in zip(stepped, means):
        root = (mean / (1.0 - beta2 ** float(state["step"]))).sqrt()
        state["reference"] = torch.where(root > 0, root, math.inf)


def _width(state: dict[str, Any]) -> int:
    return state["exp_avg"].shape[1] if "blocks" in state else 0


def _check(group: dict[str, Any]) -> None:
    check_common(group["lr"], group["betas"], group["eps"], group["weight_decay"])
    check_choice("bias", group["bias"], BIASES)
    check_range("density", group["density"], 0.0, 1.0, "(0, 1]")
    if group["density"] == 0:
        raise BadOption("density is 0, it must be in (0, 1]")
    if not group["theta"] > 0:
        raise BadOption(f"theta is {group['theta']:g}, it must be above 0")
    for name in ("reset_warmup", "settle"):
        if group[name] != int(group[name]) or group[name] < 0:
            raise BadOption(f"{name} is {group[name]:g}, it must be a whole number from 0")
    group["reset_every"] = interval(group["reset_every"], "reset_every")
