"""The factored model as a checkpoint, written a block at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoints import edits
from compress.checkpoints.anatomy import Matrix
from compress.checkpoints.durable import writing
from compress.checkpoints.edits.expert_list import listed
from compress.checkpoints.loader import REST, BlockLoader, skeleton
from compress.checkpoints.matrices import is_pointwise
from compress.checkpoints.placement import resolve_dtype
from compress.checkpoints.shards import ShardWriter
from compress.checkpoints.workspace import Workspace, copy_companions
from compress.lowrank.applying import Targets
from compress.lowrank.modules import Unit, edits_of, place_of
from compress.lowrank.preparing import Job
from compress.lowrank.store import BlockFiles


def write_checkpoint(
    job: Job, targets: Targets, files: BlockFiles, workspace: Workspace, parts: str = "written"
) -> None:
    """Write the checkpoint into the workspace's result.

    Args:
        job: the run.
        targets: which units became factors.
        files: holds them.
        workspace: where.
        parts: name of a directory in it for finished blocks, which a resumed run takes up.
    """
    source, dtype = job.source, resolve_dtype(job.settings.dtype)
    model = skeleton(source, dtype)
    blocks = [block.name for block in job.anatomy.blocks]
    loader = BlockLoader(source, model, blocks=blocks, dtype=dtype)
    writer = _FactorWriter(
        workspace.path / parts, *_target(job, targets, workspace, loader, dtype),
        keep=source if dtype is None else None,
    )  # fmt: skip
    done = writer.parts()
    for number, block in enumerate(blocks):
        job.progress("write", number, len(blocks), block)
        if block in done:
            continue
        loader.load(block)
        tensors = loader.tensors(block)
        inside = targets.inside(block)
        if inside:
            tensors = _exchanged(_apart(tensors, inside, model), inside, files.read(block), model)
        writer.write(block, tensors)
        loader.unload(block)
    if REST not in done:
        loader.load_rest()
        writer.write(REST, loader.tensors(REST))
    job.progress("write", len(blocks), len(blocks))
    writer.join(workspace.result)
    copy_companions(source.companions(), workspace.result)


class _FactorWriter(ShardWriter):
    """Leaves factors in the dtype that they come in."""

    def _as_on_disk(self, name: str, value: Tensor) -> Tensor:
        factor = name.endswith((".down.weight", ".up.weight"))
        return value if factor else super()._as_on_disk(name, value)


def _target(
    job: Job,
    targets: Targets,
    workspace: Workspace,
    loader: BlockLoader,
    dtype: torch.dtype | None,
) -> tuple[Any, Any]:
    """Write the result's config.json; return the skeleton that it describes, and conversions."""
    source = job.source
    config = json.loads((source.directory / "config.json").read_text(encoding="utf-8"))
    if dtype is not None and dtype != source.dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
    model: Any = skeleton(source, dtype)
    model._weight_conversions = list(loader.conversions)
    edits.apply(model, edits_of((u, targets.ranks[n]) for n, u in targets.units.items()))
    edited = getattr(model.config, "quantization_config", None)
    if edited is not None:  # none where every layer stays
        config["quantization_config"] = edited.to_dict()
    with writing(workspace.result):
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (workspace.result / "config.json").write_text(text, encoding="utf-8")
    return model, model._weight_conversions


def _apart(tensors: Mapping[str, Tensor], units: list[Unit], model: nn.Module) -> dict[str, Tensor]:
    """Return a block's tensors with stacked experts, of which some are units, one by one."""
    out = dict(tensors)
    for name in sorted({m.module for unit in units for m in unit.matrices if m.stacked}):
        stacks = {
            k: out.pop(f"{name}.{k}") for k, _ in model.get_submodule(name).named_parameters()
        }
        out |= {f"{name}.{k}": v for k, v in listed(stacks, model.get_submodule(name)).items()}
    return out


def _exchanged(
    tensors: Mapping[str, Tensor],
    units: list[Unit],
    factors: Mapping[str, Tensor],
    model: nn.Module,
) -> dict[str, Tensor]:
    """Return a block's tensors with factors in the place of its units' weights."""
    out = dict(tensors)
    for unit in units:
        for matrix in unit.matrices:
            place = place_of(matrix)
            del out[f"{place}.weight"]
            shape = _shape(model, matrix)
            out[f"{place}.up.weight"] = shape(factors[f"{matrix.name}|up"])
            if matrix.name == unit.name:
                out[f"{place}.down.weight"] = shape(factors[f"{matrix.name}|down"])
            bias = out.pop(f"{place}.bias", None)
            if bias is not None:
                shift = factors.get(f"{matrix.name}|shift")
                moved = bias if shift is None else (bias.double() + shift).to(bias.dtype)
                out[f"{place}.up.bias"] = moved
    return out


def _shape(model: nn.Module, matrix: Matrix) -> Any:
    """How a factor [a, b] is stored: as it is, or as a kernel [a, b, 1]."""
    if is_pointwise(model.get_submodule(matrix.module)):
        return lambda factor: factor.unsqueeze(2)
    return lambda factor: factor
