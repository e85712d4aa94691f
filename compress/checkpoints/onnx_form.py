"""An image classifier as ONNX: pixel values in, logits out, any batch size.

By torch's own exporter (`torch.export`, then `torch.onnx`), from the network as it is, edits
included. Attention is written out, since the exporter can't take fused attention with a mask and a
free batch size apart.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.checkpoints.save import Workspace, copy_companions, writing
from compress.checkpoints.source import Source
from compress.errors import RequestError, RunError
from compress.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "model.onnx"
TOLERANCE = 1e-3  # of the logits' spread: another library's kernels
_INSTALL = "`pip install 'compress[onnx]'`"
_SIDE = 224


class _Logits(nn.Module):
    """A classifier that returns its logits and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, classes]."""
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


class OnnxForm:
    """An image classifier as an ONNX file, with its config and processor beside it."""

    def __init__(self, source: Source, progress: Progress) -> None:
        self.source = source
        self.modules: list[str] = []
        self.worst: float | None = None

    def write(self, workspace: Workspace) -> None:
        """Write the file, and compare it with the network where onnxruntime is there.

        Raises:
            RequestError: no image classifier, onnx isn't installed, or its exporter can't take it.
            RunError: the file computes something else.
        """
        model = self.source.load(torch.float32)
        example = example_images(model, self.source.directory)
        with writing(workspace.result, "free some space there, then try again"):
            self.worst = export_onnx(model, example, workspace.result / FILE)
            (workspace.result / "config.json").write_bytes(
                (self.source.directory / "config.json").read_bytes()
            )
        copy_companions(self.source.companions(), workspace.result)

    def notes(self, before: object, after: object) -> tuple[str, ...]:
        """Say what was gained and what was lost."""
        checked = (
            "It wasn't run: onnxruntime isn't installed."
            if self.worst is None
            else f"onnxruntime's logits differ by {self.worst:.1e} of their spread."
        )
        return (
            f"Gained: {FILE} runs without this package and without torch; pixel_values "
            "[batch, 3, H, W] in, logits out; the batch is free, the size of images is not.",
            checked,
            "Lost: it is float32, it can't be trained, and transformers doesn't load it.",
        )


def exported_program(model: PreTrainedModel, example: Tensor) -> Any:
    """Return `torch.export`'s program of the classifier, its batch size free.

    Args:
        model: on the CPU or a device, left as it was but in evaluation mode.
        example: pixel values [1 or more, 3, H, W]; the size of the images is fixed.
    """
    model.eval()
    batch = torch.export.Dim("batch", min=1)
    pair = example[:1].repeat(2, 1, 1, 1)  # a batch of 1 would be taken for a constant
    with torch.no_grad(), _written_out(model):
        return torch.export.export(_Logits(model), (pair,), dynamic_shapes=({0: batch},))


def export_onnx(model: PreTrainedModel, example: Tensor, path: Path) -> float | None:
    """Write a classifier as ONNX and run it, where onnxruntime is installed, against the original.

    Args:
        model: see exported_program; in float32.
        example: see exported_program.
        path: of the file. Weights above 2 GB lie beside it.

    Returns:
        The largest difference of the logits as a share of their spread; None if it wasn't run.

    Raises:
        RequestError: onnx or onnxscript isn't installed, or the exporter can't take the network.
        RunError: the file computes something else.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RequestError(f"ONNX needs `{error.name}`", _INSTALL) from error
    with _quiet():
        try:
            program = torch.onnx.export(
                exported_program(model, example),
                dynamo=True,
                input_names=["pixel_values"],
                output_names=["logits"],
                verbose=False,
            )
        except Exception as error:  # the exporter wraps what it stumbles over
            cause = error.__cause__ or error
            said = str(cause).strip().splitlines()
            raise RequestError(
                f"torch's ONNX exporter can't take {type(model).__name__}: "
                f"{said[0][:120] if said else type(cause).__name__}",
                "the checkpoint itself can be loaded and served by torch",
            ) from error
        assert program is not None
        program.save(str(path))
    return _compared(model, example, path)


def example_images(model: PreTrainedModel, directory: Path) -> Tensor:
    """Return pixel values [1, channels, H, W] of the size that a checkpoint is made for.

    The config's `image_size`, else the size in its image processor's file, else 224.

    Raises:
        RequestError: the model is no image classifier.
    """
    if "ImageClassification" not in type(model).__name__:
        raise RequestError(
            f"`{type(model).__name__}` is no image classifier, which alone is written as ONNX here",
            "text models: optimum-cli export onnx",
        )
    config: Any = model.config
    side = getattr(config, "image_size", None) or _processor_size(directory) or _SIDE
    height, width = (side, side) if isinstance(side, int) else tuple(side)[:2]
    generator = torch.Generator().manual_seed(0)
    channels = int(getattr(config, "num_channels", 3) or 3)
    return torch.randn(1, channels, height, width, generator=generator)


def _processor_size(directory: Path) -> Any:
    """Read the side from preprocessor_config.json; None where it doesn't say."""
    with contextlib.suppress(OSError, ValueError):
        told = json.loads((directory / "preprocessor_config.json").read_text(encoding="utf-8"))
        size = (told.get("crop_size") if told.get("do_center_crop") else None) or told.get("size")
        if isinstance(size, dict):
            if "height" in size:
                return size["height"], size["width"]
            return size.get("shortest_edge")
        return size
    return None


@torch.no_grad()
def _compared(model: PreTrainedModel, example: Tensor, path: Path) -> float | None:
    """Run the file on a batch of another size than it was traced with."""
    try:
        import onnxruntime
    except ImportError:
        return None
    images = example[:1].repeat(3, 1, 1, 1) * torch.tensor([1.0, 0.5, -1.0]).reshape(3, 1, 1, 1).to(
        example
    )
    wanted = model(pixel_values=images).logits.float().cpu()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"pixel_values": images.cpu().numpy()})
    worst = float((torch.from_numpy(found) - wanted).abs().max()) / (float(wanted.std()) or 1.0)
    if worst > TOLERANCE:
        raise RunError(
            f"the ONNX file's logits differ by {worst:.2g} of their spread from the network's",
            "this is a bug worth reporting, of torch's exporter or ours",
        )
    return worst


@contextlib.contextmanager
def _written_out(model: Any) -> Iterator[None]:
    """Let attention be computed by plain products for as long as it takes."""
    before = getattr(model.config, "_attn_implementation", None)
    changes = before not in (None, "eager") and getattr(model, "_supports_sdpa", False)
    if changes:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if changes:
            model.set_attn_implementation(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's steps and warnings off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [log.level for log in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for log in loggers:
            log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
