"""Stable-SPAM: Adam on gradients whose spikes and norm are adapted first (arXiv 2502.17055)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

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
    zeros_like,
)

ADACLIPS = {"scale": kernels.stable_scale, "clamp": kernels.stable_clamp}
DECAYS = ("none", "cosine")

# Columns of a tensor's statistics: averages, their weights, and counts.
MAXIMUM, NORM, SQUARE, W_MAXIMUM, W_NORM, W_SQUARE, W_FIRST, W_SECOND, CLIPPED, SKIPPED = range(10)
STATISTICS = 10


class StableSPAM(HealthyOptimizer):
    """Adam with AdaClip, AdaGN and momentum reset, all per tensor.

    For a gradient g with largest entry M = max |g|:

    1. AdaClip: T = gamma3 T + (1 - gamma3) M, That its mean so far; an entry above That becomes
       g That / M (`adaclip="scale"`, as published) or sign(g) That (`"clamp"`).
    2. AdaGN: n = |g|_2 after that, a = gamma1 a + (1 - gamma1) n, b = gamma2 b + (1 - gamma2) n²;
       g becomes g / n * ahat / (sqrt(bhat) + eps).
    3. Each reset_every steps m = v = 0 and Adam's step = 0; then Adam, its weight decay first.

    A tensor whose gradient isn't finite is left alone in that step, and counted.

    Corrections: That, ahat and bhat divide by the same average of ones, 1 - gamma^t for all t
    steps since the start. `bias="legacy"` is the published code: they start again at each reset
    (so that nothing is clipped for long), and the step of the reset uses the old moments with the
    new count, before it drops them.

    State per parameter: moments, two float32 (8 bytes), and ten numbers per tensor.

    Args:
        params: parameters, (name, parameter) pairs, or groups of either with their own options.
        lr: learning rate, > 0.
        betas, eps: as Adam's.
        weight_decay: decoupled: p times 1 - lr * weight_decay, before the step.
        gamma1, gamma2: of the mean norm, and of its square; 0.85 and 0.99999 for BF16 training.
        gamma3: of the largest entry.
        reset_every: steps between resets; 0: never.
        adaclip: scale or clamp.
        bias: restart or legacy.
        beta_decay: none, or cosine: beta1 and gamma1 times 1 to 0.5 over `total_steps`, as in the
            published launcher; corrections follow.
        total_steps: of the run, for beta_decay.
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
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        gamma1: float = 0.7,
        gamma2: float = 0.9,
        gamma3: float = 0.999,
        reset_every: int | None = 1000,
        adaclip: str = "scale",
        bias: str = "restart",
        beta_decay: str = "none",
        total_steps: int = 20_000,
        compile: bool | str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "gamma1": gamma1,
            "gamma2": gamma2,
            "gamma3": gamma3,
            "reset_every": reset_every,
            "adaclip": adaclip,
            "bias": bias,
            "beta_decay": beta_decay,
            "total_steps": total_steps,
            "calls": 0,
        }
        super().__init__(params, defaults)
        self.counting = True
        self._engine = kernels.Engine(compile, sum(p.numel() for p in self._parameters()))

    def _check(self, group: dict[str, Any]) -> None:
        _check(group)

    def _advance(self, group: dict[str, Any], waiting: dict[Any, list[Any]]) -> None:
        every = group["reset_every"]
        resets = bool(every) and group["calls"] % every == 0
        if resets:
            self._reset(group, W_FIRST, moments=group["bias"] == "restart")
        batches: dict[Any, list[Tensor]] = {}
        for _, p in self._with_gradient(group):
            state = self.state[p] or self._start(p)
            gradient: Any = p.grad
            # Nothing here may differ between processes: each batch costs two collectives.
            key = (*_kind(state["exp_avg"]), p.dtype, gradient.dtype, reductions.mesh_of(p))
            batches.setdefault(key, []).append(p)
        for (*_, mesh), parameters in batches.items():
            self._update(group, parameters, mesh)
        if resets and group["bias"] == "legacy":
            self._reset(group, W_MAXIMUM, moments=True)

    def _start(self, p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        state["exp_avg"], state["exp_avg_sq"] = zeros_like(p), zeros_like(p)
        place = local(p).device
        state["statistics"] = torch.zeros(STATISTICS, dtype=torch.float64, device=place)
        master = master_of(p)
        if master is not None:
            state["master"] = master
        return state

    def _reset(self, group: dict[str, Any], first: int, *, moments: bool) -> None:
        """Restart corrections, and moments if asked.

        Args:
            group: whose parameters.
            first: W_FIRST: Adam's correction starts at its first step, which comes now. W_MAXIMUM:
                those of the averages count the step just taken as their first.
            moments: whether they become 0.
        """
        states = [self.state[p] for p in group["params"] if p in self.state]
        if not states:
            return
        if moments:
            names = ("exp_avg", "exp_avg_sq")
            torch._foreach_zero_([local(state[name]) for state in states for name in names])
        gammas = (group["gamma3"], _decayed(group)[1], group["gamma2"])
        for state in states:
            if first == W_FIRST:
                state["statistics"][W_FIRST : W_SECOND + 1] = 0.0
                continue
            for column, gamma in zip((W_MAXIMUM, W_NORM, W_SQUARE), gammas):
                state["statistics"][column] = 1.0 - gamma

    def _update(self, group: dict[str, Any], parameters: list[Tensor], mesh: Any) -> None:
        states = [self.state[p] for p in parameters]
        targets = [local(state.get("master", p)) for p, state in zip(parameters, states)]
        gradients = [local(p.grad) for p in parameters]  # type: ignore[arg-type]
        m = [local(state["exp_avg"]) for state in states]
        v = [local(state["exp_avg_sq"]) for state in states]
        scalars = self._measure(group, gradients, states, mesh).to(m[0].dtype).unbind()
        kernel = ADACLIPS[group["adaclip"]]
        flat = []
        for tensors in zip(targets, gradients, m, v, scalars):
            if tensors[0].numel() >= 2 and all(t.is_contiguous() for t in tensors):
                flat.append([t.view(-1) for t in tensors])
            else:
                kernel(*tensors)
        if flat:
            self._engine.run(kernel, list(zip(*flat)))
        if "master" in states[0]:
            torch._foreach_copy_([local(p) for p in parameters], targets)

    def _measure(
        self,
        group: dict[str, Any],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
        mesh: Any,
    ) -> Tensor:
        """Reduce the gradients, advance the statistics, and make the kernel's scalars [n, 11]."""
        old = torch.stack([state["statistics"] for state in states])
        measured = reductions.measure(gradients, self._engine, mesh)
        largest = measured.largest
        taken = torch.isfinite(largest)
        largest = torch.where(taken, largest, 0.0)
        new, beta1, gamma1 = old.clone(), *_decayed(group)
        _average(new, MAXIMUM, W_MAXIMUM, group["gamma3"], largest)
        limit = new[:, MAXIMUM] / new[:, W_MAXIMUM]
        over = taken & (largest > limit)
        factor = torch.where(over, limit / largest, 1.0)
        clamp = group["adaclip"] == "clamp"
        norm = measured.norm_after(limit, factor, over, clamp=clamp)
        taken &= torch.isfinite(norm)
        norm = torch.where(taken, norm, 0.0)
        _average(new, NORM, W_NORM, gamma1, norm)
        _average(new, SQUARE, W_SQUARE, group["gamma2"], norm * norm)
        for column, beta in ((W_FIRST, beta1), (W_SECOND, group["betas"][1])):
            new[:, column] = new[:, column] * beta + (1.0 - beta)
        new[:, CLIPPED] += over
        new = torch.where(taken[:, None], new, old)
        new[:, SKIPPED] += ~taken
        torch._foreach_copy_([state["statistics"] for state in states], list(new.unbind()))
        return _scalars(group, new, norm, limit, factor, taken, beta1)

    def report(self) -> dict[str, float]:
        """What to log: waits for the device, so call it at logging steps only.

        Returns:
            "clipped" and "nonfinite", counts of (tensor, step) in which AdaClip acted, and which
            were left out, so far; "resets" of the first group.
        """
        found = [s["statistics"] for s in self.state.values()]
        whole = torch.stack([f.cpu() for f in found]).sum(0) if found else torch.zeros(STATISTICS)
        first = self.param_groups[0]
        every = first["reset_every"]
        return {
            "clipped": float(whole[CLIPPED]),
            "nonfinite": float(whole[SKIPPED]),
            "resets": float(first["calls"] // every if every else 0),
        }


def _average(new: Tensor, column: int, weight: int, gamma: float, value: Tensor) -> None:
    """One step of a moving average, and of the average of ones that corrects it."""
    new[:, column] = new[:, column] * gamma + (1.0 - gamma) * value
    new[:, weight] = new[:, weight] * gamma + (1.0 - gamma)


def _scalars(
    group: dict[str, Any],
    new: Tensor,
    norm: Tensor,
    limit: Tensor,
    factor: Tensor,
    taken: Tensor,
    beta1: float,
) -> Tensor:
    lr, eps, beta2 = float(group["lr"]), group["eps"], group["betas"][1]
    mean = new[:, NORM] / new[:, W_NORM]
    spread = (new[:, SQUARE] / new[:, W_SQUARE]).sqrt()
    gain = torch.where(norm > 0, mean / (spread + eps) / norm, 0.0)
    row = torch.zeros(len(new), kernels.SCALARS, dtype=new.dtype, device=new.device)
    row[:, kernels.RATE] = lr / new[:, W_FIRST]
    row[:, kernels.ROOT] = new[:, W_SECOND].rsqrt()
    row[:, kernels.EPS] = eps
    row[:, kernels.BEFORE] = 1.0 - lr * group["weight_decay"]
    row[:, kernels.AFTER] = 1.0
    row[:, kernels.W1], row[:, kernels.W2] = 1.0 - beta1, 1.0 - beta2
    row[:, kernels.CLIP], row[:, kernels.CAP] = limit, factor
    row[:, kernels.GAIN], row[:, kernels.TAKEN] = gain, taken.to(row.dtype)
    return row


def _decayed(group: dict[str, Any]) -> tuple[float, float]:
    """beta1 and gamma1 of this step."""
    share = 1.0
    if group["beta_decay"] == "cosine":
        done = min(group["calls"] / group["total_steps"], 1.0)
        share = 0.75 + 0.25 * math.cos(math.pi * done)
    return group["betas"][0] * share, group["gamma1"] * share


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.device


def _check(group: dict[str, Any]) -> None:
    check_common(group["lr"], group["betas"], group["eps"], group["weight_decay"])
    check_choice("bias", group["bias"], BIASES)
    check_choice("adaclip", group["adaclip"], tuple(ADACLIPS))
    check_choice("beta_decay", group["beta_decay"], DECAYS)
    for name in ("gamma1", "gamma2", "gamma3"):
        check_range(name, group[name], 0.0, 1.0, "[0, 1)", right_open=True)
    group["reset_every"] = interval(group["reset_every"], "reset_every")
    if not group["total_steps"] > 0:
        raise BadOption(f"total_steps is {group['total_steps']:g}, it must be above 0")
