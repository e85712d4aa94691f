"""APOLLO: Adam's step sizes, learnt in a small random projection (arXiv 2412.05270)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from compress.numerics.counter import generator
from compress.training.optimizers.base import (
    BadOption,
    HealthyOptimizer,
    check_common,
    interval,
    local,
    master_of,
    names_of,
    state_dtype,
    zeros_like,
)
from compress.training.optimizers.blocks import parameter_key

_GROWTH = 1.01  # most by which the norm of an update may grow from step to step
_TINY = 1e-8


class APOLLO(HealthyOptimizer):
    """Scales each channel of a matrix's gradient by what Adam makes of its projection.

    For a gradient G [m, n], m <= n (else transposed), and a random P [rank, m], N(0, 1 / rank),
    drawn anew each `refresh` steps:

    1. R = P G, and Adam on it: A = mhat / (sqrt(vhat) + eps), [rank, n].
    2. s_j = |A_j| / |R_j| for each column j; the update is U = scale * G diag(s).
    3. |U| grows by at most 1 % a step: a larger U is scaled down.
    4. W = W (1 - lr * weight_decay) - lr U.

    Parameters of a group without `rank`, and vectors, get Adam.

    State per parameter of a matrix: two numbers for each entry of R, and P.

    Args:
        params: parameters, (name, parameter) pairs, or groups of either with their own options.
        lr: learning rate, > 0.
        betas, eps, weight_decay: as AdamW's.
        rank: rows of P; None is Adam.
        scale: of the update; 1 for a rank of a quarter of the width, as published.
        refresh: steps between projections.
        seed: of the projections.

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
        rank: int | None = None,
        scale: float = 1.0,
        refresh: int = 200,
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "rank": rank,
            "scale": scale,
            "refresh": refresh,
            "seed": seed,
            "calls": 0,
        }
        super().__init__(params, defaults)
        self.counting, self._engine = False, None

    def _check(self, group: dict[str, Any]) -> None:
        check_common(group["lr"], group["betas"], group["eps"], group["weight_decay"])
        if group["rank"] is not None and group["rank"] < 1:
            raise BadOption(f"rank is {group['rank']}, it must be at least 1")
        if not interval(group["refresh"], "refresh"):
            raise BadOption("refresh is 0, it must be at least 1")

    def _advance(self, group: dict[str, Any], waiting: dict[Any, list[Any]]) -> None:
        for place, p in self._with_gradient(group):
            projected = group["rank"] is not None and p.ndim == 2
            if projected and p.numel() != local(p).numel():
                raise BadOption(
                    "apollo projects whole matrices, and a parameter is sharded over processes",
                    "leave --fsdp out, or use --optimizer adamw",
                )
            state = self.state[p] or self._start(group, p, projected)
            gradient = local(p.grad).to(state_dtype(p))  # type: ignore[arg-type]
            if projected:
                self._project_anew(group, place, p, state)
                update = _projected(group, state, gradient)
            else:
                update = _adam(group, state, gradient)
            target = local(state.get("master", p))
            target.mul_(1.0 - float(group["lr"]) * group["weight_decay"])
            target.add_(update, alpha=-float(group["lr"]))
            if "master" in state:
                local(p).copy_(target)

    def _start(self, group: dict[str, Any], p: Tensor, projected: bool) -> dict[str, Any]:
        state = self.state[p]
        state["step"] = torch.zeros((), dtype=torch.float32)
        like: dict[str, Any] = {"dtype": state_dtype(p), "device": local(p).device}
        if projected:
            rank = min(group["rank"], *p.shape)
            shape = (rank, max(p.shape))
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros(shape, **like) for _ in range(2))
            state["projection"] = torch.zeros(rank, min(p.shape), **like)
            state["norm"] = torch.zeros((), **like)
        else:
            state["exp_avg"], state["exp_avg_sq"] = zeros_like(p), zeros_like(p)
        master = master_of(p)
        if master is not None:
            state["master"] = master
        return state

    def _project_anew(
        self, group: dict[str, Any], place: int, p: Tensor, state: dict[str, Any]
    ) -> None:
        draw, since = divmod(int(state["step"]), group["refresh"])
        if since:
            return
        names = names_of(group)
        before = sum(len(g["params"]) for g in self._groups_before(group))
        key = parameter_key(list(names)[place] if names else None, before + place)
        projection = state["projection"]
        noise = torch.randn(projection.shape, generator=generator(group["seed"], key, draw))
        projection.copy_(noise / math.sqrt(len(projection)))

    def _groups_before(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        place = next(i for i, other in enumerate(self.param_groups) if other is group)
        return self.param_groups[:place]


def _adam(group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> Tensor:
    """Advance the moments; return mhat / (sqrt(vhat) + eps)."""
    beta1, beta2 = group["betas"]
    k = float(state["step"].add_(1))
    m, v = local(state["exp_avg"]), local(state["exp_avg_sq"])
    m.lerp_(gradient, 1.0 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    return (m / (1.0 - beta1**k)) / ((v / (1.0 - beta2**k)).sqrt() + group["eps"])


def _projected(group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> Tensor:
    tall = gradient.shape[0] > gradient.shape[1]
    wide = gradient.t() if tall else gradient
    small = state["projection"] @ wide
    size = small.norm(dim=0)
    update = group["scale"] * wide * (_adam(group, state, small).norm(dim=0) / (size + _TINY))
    norm, before = update.norm(), state["norm"]
    limit = torch.where(before > 0, before * _GROWTH, math.inf)
    update = update * torch.where(norm > limit, limit / norm, 1.0)
    state["norm"].copy_(torch.minimum(norm, limit))
    return update.t() if tall else update
