"""A checkpoint in another form, stock or without its zeros, saying what that costs."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.checkpoints import edits
from compress.checkpoints.edits.blocks import is_placed
from compress.checkpoints.edits.expert_list import ExpertList, stack
from compress.checkpoints.edits.lowrank import LowRank
from compress.checkpoints.edits.lowrank_up import LowRankUp
from compress.checkpoints.edits.scaled_norm import can_fold, fold, is_scaled
from compress.checkpoints.onnx_form import FILE as ONNX_FILE
from compress.checkpoints.onnx_form import OnnxForm
from compress.checkpoints.packing import whole_counts
from compress.checkpoints.record import config_of, forget, packed_here
from compress.checkpoints.remote import Remote
from compress.checkpoints.save import Workspace, check_output, copy_companions, writing
from compress.checkpoints.source import Source, open_source
from compress.checkpoints.tensorfiles import stored_tensors, weight_files
from compress.checkpoints.zeros import write_zeros
from compress.errors import RequestError, near_names
from compress.progress import Progress, silent

FORMS = ("stock", "bitmask", "remote-code", "onnx")
_NAMED = 4  # modules that a message spells out
_SPACE = "free some space there, then try again"


@dataclass(frozen=True)
class Size:
    """How large a checkpoint is: stored tensor elements, and bytes of the weight files."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        source: the model, as the user named it.
        output: the directory written.
        form: one of FORMS.
        modules: what was turned into stock modules, what is stored without its zeros, or what the
            file of code edits.
        before, after: sizes of the two checkpoints.
        notes: plain sentences: what is gained and lost.
    """

    source: str
    output: str
    form: str
    modules: tuple[str, ...]
    before: Size
    after: Size
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the export as JSON, in the form of a receipt."""
        return {
            "schema": 1,
            "command": "export",
            "status": "ok",
            "model": {"source": self.source},
            "output": self.output,
            "to": self.form,
            "modules": list(self.modules),
            "before": asdict(self.before),
            "after": asdict(self.after),
            "notes": list(self.notes),
        }

    def render(self) -> str:
        """Return the export as text for a terminal."""
        lines = [f"{self.source} -> {self.output} ({self.form})"]
        for name in ("parameters", "bytes"):
            before, after = getattr(self.before, name), getattr(self.after, name)
            change = f"{after / before - 1:+.1%}" if before else ""
            lines.append(f"  {name:<10} {before:>16,} -> {after:>16,}  {change}".rstrip())
        fill = textwrap.TextWrapper(80, initial_indent="  ", subsequent_indent="    ").fill
        return "\n".join([*lines, *map(fill, self.notes)])


def export(
    model: str | Path,
    output: str | Path,
    to: str = "stock",
    *,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    finish: Callable[[Path, Exported], None] | None = None,
    progress: Progress = silent,
) -> Exported:
    """Write a checkpoint in another form.

    "stock", which needs no `import compress`: low-rank modules are multiplied out and packed ones
    stored dense; edits whose shapes the stock config can spell are kept; a checkpoint without edits
    is copied as it is. "bitmask", which needs it: the blocks' matrices are stored without their
    zeros where that is smaller; other edits are kept. "remote-code", which needs
    `trust_remote_code=True` and no `import compress`: a Python file beside the weights makes the
    edits, and all zeros are stored. "onnx": an image classifier as `model.onnx`.

    Args:
        model: a local directory or a Hub id.
        output: the directory to make.
        to: the form.
        overwrite: whether a directory with content is replaced.
        revision, token, trust_remote_code: for a Hub id, as `from_pretrained` takes them.
        finish: called with the directory and what was done before the directory is put in place;
            it may add files, such as a receipt.
        progress: told of each module.

    Raises:
        RequestError: the form or the model is unknown, the output can't be used, stock code can't
            hold the model (the modules in its way are named), or no matrix has enough zeros.
        RunError: the disk is full.
    """
    if to not in FORMS:
        raise RequestError(f"unknown form `{to}`", near_names(to, FORMS))
    source = open_source(model, revision=revision, token=token, trust_remote_code=trust_remote_code)
    check_output(output, overwrite=overwrite, source=source.directory)
    made = _WRITERS[to](source, progress)
    with Workspace.open(output, overwrite=overwrite, source=source.directory) as workspace:
        try:
            made.write(workspace)
            sizes = [_size(source.directory), _size(workspace.result)]
            if to == "onnx":  # no checkpoint any more: as many parameters, in files of its own
                files = workspace.result.glob(f"{ONNX_FILE}*")
                sizes[1] = Size(sizes[0].parameters, sum(file.stat().st_size for file in files))
            result = Exported(
                source=str(model),
                output=str(output),
                form=to,
                modules=tuple(made.modules),
                before=sizes[0],
                after=sizes[1],
                notes=made.notes(*sizes),
            )
            if finish is not None:
                finish(workspace.result, result)
            workspace.commit()
        except BaseException:
            workspace.discard()
            raise
    return result


def _size(place: Path) -> Size:
    """Measure the weight files of a checkpoint; a packed weight counts whole."""
    counts = whole_counts(stored_tensors(place))
    return Size(sum(counts.values()), sum(file.stat().st_size for file in weight_files(place)))


def to_stock(model: PreTrainedModel) -> list[str]:
    """Turn an edited model in memory into a stock one, in place, without marks of edits.

    Returns:
        The names of the modules that were multiplied out.

    Raises:
        RequestError: stock code can't hold the model; it is then as it was.
    """
    done, _ = multiply_out(model)
    forget(model)
    return done


def multiply_out(model: PreTrainedModel, progress: Progress = silent) -> tuple[list[str], float]:
    """Replace each low-rank module by the stock one that it stands for, and fold scaled norms.

    The product is computed in float64 and rounded to the model's dtype.

    Returns:
        The names of the low-rank modules replaced, and the largest relative rounding error of a
        weight: ||rounded - product|| / ||product||.

    Raises:
        RequestError: an edit of another kind, or another size, is in the way; nothing is changed.
    """
    config = config_of(model)
    if config is None:
        return [], 0.0
    names = list(edits.resolve(model, config.modules, foreign_heads=True).values())
    plain = _plain_skeleton(model)
    factored = (LowRank, LowRankUp)
    pairs = [name for name in names if isinstance(model.get_submodule(name), factored)]
    norms = [name for name in names if is_scaled(model.get_submodule(name))]
    norms = [name for name in norms if can_fold(model.get_submodule(name))]
    lists = [name for name in names if isinstance(model.get_submodule(name), ExpertList)]
    apart = {*norms, *lists}
    rest = [n for n in names if n not in apart and not _inside(n, (*pairs, *lists))]
    _check_sayable(model, plain, rest)
    for name in norms:
        fold(model.get_submodule(name))
    worst = 0.0
    for done, name in enumerate(pairs):
        progress("multiply out", done, len(pairs), name)
        pair: Any = model.get_submodule(name)
        product = pair.product()
        worst = max(worst, _rounding(product, pair.weight.dtype))
        if not _inside(name, lists):
            model.set_submodule(name, _filled(plain.get_submodule(name), product, pair))
    for name in lists:
        experts: Any = model.get_submodule(name)
        new = copy.deepcopy(plain.get_submodule(name))
        stack(experts, new)
        model.set_submodule(name, new.train(experts.training))
    progress("multiply out", len(pairs), len(pairs))
    return pairs, worst


def _rounding(product: Tensor, dtype: torch.dtype) -> float:
    """Return ||rounded - product|| / ||product||."""
    norm = torch.linalg.vector_norm(product)
    lost = torch.linalg.vector_norm(product.to(dtype).double() - product)
    return float(lost / norm) if norm > 0 else 0.0


def _inside(name: str, modules: Iterable[str]) -> bool:
    """Whether a module lies within one of others."""
    return any(name.startswith(f"{module}.") for module in modules)


def _filled(plain: nn.Module, product: Tensor, pair: Any) -> nn.Module:
    """Return a copy of a stock module, off the meta device, with the pair's weight and bias."""
    new: Any = copy.deepcopy(plain)
    weight = product.T if isinstance(new, Conv1D) else product
    trains = pair.weight.requires_grad
    new.weight = nn.Parameter(weight.contiguous().to(pair.weight.dtype), requires_grad=trains)
    if pair.bias is not None:
        new.bias = nn.Parameter(pair.bias.detach().clone(), requires_grad=trains)
    return new.train(pair.training)


def _plain_skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """Return the stock model that the config describes without its edits, on the meta device."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        return type(model)._from_config(config, dtype=model.dtype)


def _check_sayable(model: PreTrainedModel, plain: PreTrainedModel, names: Iterable[str]) -> None:
    """Refuse a model with edited modules that the stock class would build otherwise."""
    known = {name for name, _ in plain.named_modules()}
    bad = [
        name
        for name in names
        if name not in known
        or is_placed(model.get_submodule(name))
        or is_scaled(model.get_submodule(name))
        or _shapes(model.get_submodule(name)) != _shapes(plain.get_submodule(name))
    ]
    if bad:
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        listed = ", ".join(f"`{name}`" for name in bad[:_NAMED])
        raise RequestError(
            f"a stock {type(model).__name__} can't hold the edits of {listed}{more}",
            "load the checkpoint after `import compress` instead; only low-rank modules, scaled "
            "norms and sizes that config.json can spell have a stock form",
        )


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the tensors that a module holds: low-rank ones multiplied out, Conv1D as [out, in]."""
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    for name, inner in module.named_modules():
        head = f"{name}." if name else ""
        if isinstance(inner, Conv1D):
            shapes[f"{head}weight"] = shapes[f"{head}weight"][::-1]
        elif isinstance(inner, LowRank | LowRankUp):
            tall, wide = shapes.pop(f"{head}up.weight")[0], inner.product_shape[1:]
            shapes.pop(f"{head}down.weight", None)
            shapes[f"{head}weight"] = (tall, *wide)
            if f"{head}up.bias" in shapes:
                shapes[f"{head}bias"] = shapes.pop(f"{head}up.bias")
    return shapes


def _all_files(source: Source) -> list[Path]:
    """Return every file of a stock checkpoint: weights, indices, config, companions."""
    weights = sorted(set(source.files.values()))
    indices = sorted(source.directory.glob("*.index.json"))
    return [source.directory / "config.json", *weights, *indices, *source.companions()]


class _Stock:
    """A checkpoint in stock form, made in memory."""

    def __init__(self, source: Source, progress: Progress) -> None:
        self.source = source
        self.modules: list[str] = []
        self.products: list[str] = []
        self.packed: list[str] = []
        self.norms: list[str] = []
        self.rounding = 0.0
        edited = getattr(source.config, "quantization_config", None) is not None
        self.model = source.load() if edited else None
        if self.model is not None:
            config = config_of(self.model)
            packed = packed_here(self.model, config) if config else []
            self.norms = [name for name, part in self.model.named_modules() if is_scaled(part)]
            self.products, self.rounding = multiply_out(self.model, progress)
            self.packed = [name for name in packed if not _inside(name, self.products)]
            forget(self.model)
            self.modules = list(dict.fromkeys([*self.products, *self.norms, *self.packed]))

    def write(self, workspace: Workspace) -> None:
        """Save the model, or copy the files of one that is stock already."""
        if self.model is None:
            copy_companions(_all_files(self.source), workspace.result)
            return
        with writing(workspace.result, _SPACE):
            self.model.save_pretrained(workspace.result, max_shard_size="5GB")
        copy_companions(self.source.companions(), workspace.result)

    def notes(self, before: Size, after: Size) -> tuple[str, ...]:
        """Say what was gained and what was lost."""
        if self.model is None:
            return ("It is stock already: copied file by file.",)
        notes = ["Gained: it loads everywhere, without this package."]
        growth = after.bytes / before.bytes if before.bytes else 1.0
        if self.norms:
            notes.append(
                f"The factors of {len(self.norms)} scaled norms lie in their weights, rounded once."
            )
        if self.packed:
            notes.append(
                f"Lost: the zeros of {len(self.packed)} modules are stored again "
                f"(files x{growth:.2f}); every weight is as it was."
            )
        if self.products:
            kind = str(self.source.dtype).removeprefix("torch.")
            notes += [
                f"Lost: {len(self.products)} low-rank modules are as large and as slow as before "
                f"compression (files x{growth:.2f}).",
                f"Products were rounded to {kind}: relative error up to {self.rounding:.1e}, so "
                f"outputs agree to rounding, not to the bit.",
            ]
        return tuple(notes)


class _Packed:
    """A checkpoint without the zeros of its blocks, made from file to file."""

    def __init__(self, source: Source, progress: Progress) -> None:
        self.source, self.progress = source, progress
        self.modules: list[str] = []
        self.dense = 0

    def write(self, workspace: Workspace) -> None:
        """Pack what is smaller packed.

        Raises:
            RequestError: nothing is.
        """
        done = write_zeros(
            self.source,
            workspace.result,
            workspace.path / "pieces",
            "bitmask",
            progress=self.progress,
        )
        self.modules, self.dense = list(done.packed), done.dense
        if not done.packed:
            raise RequestError(
                f"`{self.source.name}` has no matrix with enough zeros to be smaller as a bitmask",
                "prune it first, e.g. with `compress alpha-prune`; at 16 bits a weight more than "
                "1 in 16 must be zero",
            )
        copy_companions(self.source.companions(), workspace.result)

    def notes(self, before: Size, after: Size) -> tuple[str, ...]:
        """Say what was gained and what was lost."""
        size = after.bytes / before.bytes if before.bytes else 1.0
        left = f"; {self.dense} with too few zeros stay dense" if self.dense else ""
        return (
            f"Gained: {len(self.modules)} modules are stored without their zeros "
            f"(files x{size:.2f}){left}.",
            "Lost: it loads only after `import compress`; other engines refuse it. `--to stock` "
            "turns it back.",
            "Unchanged: every weight, and memory and speed, since weights are expanded at load.",
        )


_WRITERS: dict[str, Callable[[Source, Progress], Any]] = {
    "stock": _Stock,
    "bitmask": _Packed,
    "remote-code": Remote,
    "onnx": OnnxForm,
}
