"""Methods and slow references that the tests of the walk share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.checkpoints.anatomy import Block, Matrix
from compress.checkpoints.walk import BlockWeights


class Watcher:
    """Edits nothing; keeps the inputs that it is shown."""

    def __init__(self) -> None:
        self.inputs: dict[str, list[dict[str, Tensor]]] = {}
        self.matrices: dict[str, Matrix] = {}
        self.keeps: list[Tensor | None] = []

    def stages(self, block: Block) -> Sequence[Sequence[str]]:
        return [[matrix.name for matrix in block.matrices]]

    def observe(self, matrix: Matrix, inputs: dict[str, Tensor], keep: Tensor | None) -> None:
        self.inputs.setdefault(matrix.name, []).append(inputs)
        self.matrices[matrix.name] = matrix
        self.keeps.append(keep)

    def edit(self, block: Block, names: Sequence[str], weights: BlockWeights) -> None:
        pass

    def finish(self, block: Block, weights: BlockWeights) -> None:
        pass

    def gram(self, name: str) -> Tensor:
        """X^T X [in, in] over all batches of the only stream, in float64."""
        rows = torch.cat([next(iter(inputs.values())) for inputs in self.inputs[name]]).double()
        return rows.T @ rows


class NormScaler(Watcher):
    """A data-dependent edit: divides each matrix by its mean input norm, stage by stage."""

    def __init__(self, roles: Sequence[Sequence[str]] | None = None) -> None:
        super().__init__()
        self.roles = roles

    def stages(self, block: Block) -> Sequence[Sequence[str]]:
        if self.roles is None:
            return super().stages(block)
        return [[m.name for m in block.matrices if m.role in roles] for roles in self.roles]

    def edit(self, block: Block, names: Sequence[str], weights: BlockWeights) -> None:
        for name in names:
            if name in self.inputs:
                first = next(iter(self.inputs[name][0]))
                rows = torch.cat([inputs[first] for inputs in self.inputs[name]]).float()
                weights.view(name).div_(rows.norm(dim=1).mean().clamp_min(0.1))
        self.inputs.clear()


class Halver(Watcher):
    """A data-free edit: halves every matrix."""

    def edit(self, block: Block, names: Sequence[str], weights: BlockWeights) -> None:
        for name in names:
            weights.view(name).mul_(0.5)


def plain_run(
    model: nn.Module, batches: Sequence[dict], names: Sequence[str]
) -> tuple[dict[str, list], list]:
    """Return the outputs of the named modules and of the model, by ordinary forwards."""
    outputs: dict[str, list] = {name: [] for name in names}

    def hook(name: str) -> Callable[..., None]:
        return lambda module, args, output: outputs[name].append(output)

    handles = [model.get_submodule(n).register_forward_hook(hook(n)) for n in names]
    with torch.no_grad():
        final = [model(**batch) for batch in batches]
    for handle in handles:
        handle.remove()
    return outputs, final


def leaves(value: object) -> list[Tensor]:
    """Return the tensors in what a module returned."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return (
        [leaf for item in value for leaf in leaves(item)] if isinstance(value, list | tuple) else []
    )


def stored(directory: Path) -> dict[str, Tensor]:
    """Return all tensors of a directory's safetensors files."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether names, dtypes and bits agree."""
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )
