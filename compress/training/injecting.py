"""Gradient spikes put in on purpose, to see what an optimizer makes of them.

Which steps get one, and what it looks like, depends on (seed, step) alone: every arm of a
comparison, every process and every resumed run gets the same.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import RequestError, near_names
from compress.numerics.counter import generator

KINDS = {
    "global": 0.02,
    "noise": 0.02,
    "layer": 0.1,
    "sparse": 0.02,
}
"""What may be put in, and the share of steps that get it unless another is named:

global: the whole gradient times `factor`. noise: N(0, (factor * rms)²) added to every tensor, rms
being the root of the tensor's mean square. layer: the same to one tensor, drawn at random. sparse:
the same to 1 % of the entries of every tensor.
"""
FACTOR = 1000.0
_SPARSE = 0.01
_STEPS, _DRAWS = 71, 72  # streams of the seed


@dataclass(frozen=True)
class Injection:
    """What is put in.

    Attributes:
        kind: a key of KINDS.
        share: of the steps after `start`, in (0, 1].
        factor: how large.
        start: 0-based step from which on spikes may come.
        seed: of the choice of steps, and of the noise.
    """

    kind: str
    share: float
    factor: float = FACTOR
    start: int = 0
    seed: int = 0

    def hits(self, step: int) -> bool:
        """Whether 0-based `step` gets a spike."""
        if step < self.start:
            return False
        drawn = torch.rand((), generator=generator(self.seed, _STEPS, step), dtype=torch.float64)
        return float(drawn) < self.share

    def count(self, steps: int) -> int:
        """How many of a run's steps get one."""
        return sum(self.hits(step) for step in range(self.start, steps))

    def __call__(self, model: nn.Module, step: int) -> None:
        """Change the gradients of 0-based `step`, in place, where it gets a spike."""
        if self.hits(step):
            self._change(model, step)

    @torch.no_grad()
    def _change(self, model: nn.Module, step: int) -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if self.kind == "global":
            torch._foreach_mul_(gradients, self.factor)
            return
        draws = generator(self.seed, _DRAWS, step)
        if self.kind == "layer":
            chosen = int(torch.randint(len(gradients), (), generator=draws))
            gradients = gradients[chosen : chosen + 1]
        for gradient in gradients:
            gradient.add_(self._noise(gradient, draws))

    def _noise(self, gradient: Tensor, draws: torch.Generator) -> Tensor:
        noise = torch.randn(gradient.shape, generator=draws)  # on the CPU: the same on every device
        if self.kind == "sparse":
            noise *= torch.rand(gradient.shape, generator=draws) < _SPARSE
        rms = gradient.float().square().mean().sqrt()
        return (noise.to(gradient.device) * (rms * self.factor)).to(gradient.dtype)

    def receipt(self, steps: int) -> dict[str, Any]:
        """The receipt's entry of a run of so many steps."""
        return {**asdict(self), "steps": self.count(steps)}


def parse_injection(text: str, start: int = 0, seed: int = 0) -> Injection:
    """Read KIND[:SHARE[:FACTOR]], such as `noise:0.02:1000`.

    Args:
        text: as written.
        start: step from which on spikes may come.
        seed: of the run.

    Raises:
        RequestError: an unknown kind, a share outside (0, 1], a factor that isn't positive.
    """
    kind, *numbers = text.split(":")
    if kind not in KINDS:
        raise RequestError(f"`--inject-spikes {text}`: no kind `{kind}`", near_names(kind, KINDS))
    try:
        share, factor = (*map(float, numbers), *(KINDS[kind], FACTOR)[len(numbers) :])
    except ValueError as error:
        raise RequestError(
            f"`--inject-spikes {text}` isn't KIND:SHARE:FACTOR", "such as noise:0.02:1000"
        ) from error
    if not 0 < share <= 1:
        raise RequestError(f"`--inject-spikes {text}`: the share {share:g} is outside (0, 1]")
    if not 0 < factor < math.inf:
        raise RequestError(f"`--inject-spikes {text}`: the factor {factor:g} isn't positive")
    return Injection(kind, share, factor, start, seed)
