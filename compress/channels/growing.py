"""Growing regularisation before the cut (GReg-1, Wang et al., arXiv:2012.09243).

The units that L1 would remove get a penalty that grows while the network trains on: their weights
fade, and the others take over before anything is gone. The published schedule grows the penalty
every few iterations up to a ceiling; here it grows in equal steps over the epochs that are asked
for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.channels.groups import unit_rows
from compress.channels.preparing import Job
from compress.errors import RunError
from compress.numerics.counter import permutation

CEILING = 1.0  # of the penalty: weights then shrink by lr a step; ours
MOMENTUM = 0.9
DECAY = 5e-4


def grow(job: Job, model: nn.Module, masks: list[Tensor]) -> None:
    """Train `model` in place with a growing penalty on the units that `masks` leave out.

    Each step adds penalty(t) · w to the gradients of the fading units' rows, penalty growing from 0
    to CEILING in equal steps. Images in the order of (seed, epoch), not augmented.

    Args:
        job: the data and settings.
        model: a copy of the dense network.
        masks: what will be removed.

    Raises:
        RunError: the loss isn't finite.
    """
    settings, train = job.settings, job.images().train
    steps_an_epoch = -(-len(train) // settings.batch_size)
    total = steps_an_epoch * settings.growreg_epochs
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.growreg_lr, momentum=MOMENTUM, weight_decay=DECAY
    )
    fading = _fading(job, model, masks)
    model.train()
    step = 0
    for epoch in range(settings.growreg_epochs):
        rows = [int(row) for row in permutation(settings.seed, epoch + 1, len(train))]
        for batch in train.batches(settings.batch_size, rows=rows):
            images = batch["pixel_values"].to(job.device, job.dtype)
            logits = model(pixel_values=images).logits
            loss = functional.cross_entropy(logits.float(), batch["labels"].to(job.device))
            if not bool(torch.isfinite(loss)):
                raise RunError(f"the loss of step {step} isn't finite", "lower `--growreg-lr`")
            optimizer.zero_grad()
            loss.backward()
            penalty = CEILING * step / max(1, total - 1)
            for weight, share in fading:
                assert weight.grad is not None
                weight.grad.add_(penalty * share * weight.detach())
            optimizer.step()
            step += 1
            job.progress("growing penalty", step, total, f"loss {loss.item():.3f}")
    model.eval()


def _fading(job: Job, model: nn.Module, masks: list[Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    """Return each writer's weight with 1 on the rows of units that go, else 0, broadcastable."""
    shares: dict[str, Tensor] = {}
    for group, mask in zip(job.groups, masks, strict=True):
        for member in group.writers:
            weight: nn.Parameter = model.get_submodule(member.module).weight  # type: ignore[assignment]
            share = shares.setdefault(member.module, torch.zeros(len(weight), device=weight.device))
            gone = member.positions[~mask.cpu()].reshape(-1).to(weight.device)
            share[gone] = 1.0
            assert unit_rows(model, member).shape[0] == group.width
    found = []
    for name, share in shares.items():
        weight = model.get_submodule(name).weight  # type: ignore[assignment]
        found.append((weight, share.to(weight.dtype).reshape(-1, *[1] * (weight.dim() - 1))))
    return found
