"""Trains a small net in float64, under FSDP2 where there are two processes; called by a test.

Two processes train 12 steps and save after 6 through torch's distributed checkpoint; one process
then trains 12 by itself, and 6 from that checkpoint.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from compress.training.optimizers import SPAM, StableSPAM

WORLD = int(os.environ.get("WORLD_SIZE", 1))
OPTIONS = {
    "SPAM": (SPAM, {"theta": 4.0, "reset_every": 5, "reset_warmup": 2, "settle": 2}),
    "StableSPAM": (StableSPAM, {"reset_every": 5, "weight_decay": 0.1}),
}


def build(kind, options):
    torch.manual_seed(0)
    # 7 rows over two processes: shards of 4 and 3; one row: the second has nothing.
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 1)).double()
    if WORLD > 1:
        mesh = init_device_mesh("cpu", (WORLD,))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model, kind(model.parameters(), lr=0.05, **options)


def train(model, optimizer, steps):
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        x = torch.randn(8, 6, generator=draw, dtype=torch.float64)
        x = x * (30.0 if step in (4, 8) else 1.0)
        model.zero_grad()
        (model(x).square().mean()).backward()
        optimizer.step()


def whole(model):
    found = {}
    for name, value in model.state_dict().items():
        found[name] = value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
    return found


def main(place):
    if WORLD > 1:
        dist.init_process_group("gloo")
    for name, (kind, options) in OPTIONS.items():
        model, optimizer = build(kind, options)
        train(model, optimizer, range(6))
        if WORLD > 1:
            weights, state = get_state_dict(model, optimizer)
            dcp.save({"model": weights, "optimizer": state}, checkpoint_id=place / name)
        train(model, optimizer, range(6, 12))
        result = whole(model)
        if not dist.is_initialized() or dist.get_rank() == 0:
            torch.save(result, place / f"{name}-{WORLD}.pt")
        if WORLD == 1:
            model, optimizer = build(kind, options)
            weights, state = get_state_dict(model, optimizer)
            found = {"model": weights, "optimizer": state}
            dcp.load(found, checkpoint_id=place / name)
            set_state_dict(
                model,
                optimizer,
                model_state_dict=found["model"],
                optim_state_dict=found["optimizer"],
            )
            train(model, optimizer, range(6, 12))
            torch.save(whole(model), place / f"{name}-resumed.pt")
    if WORLD > 1:
        dist.barrier()  # gloo's threads end together: no process leaves while another still writes
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
