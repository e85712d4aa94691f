"""What `pass-prune` checks and reads before it chooses: the network, its groups, the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.channels.budget import Bounds, bounds, check_reachable
from compress.channels.costs import Costs, measure_costs
from compress.channels.groups import Group, find_groups
from compress.channels.heads import replace_head
from compress.channels.hypernet import make_prompt
from compress.channels.measuring import stride_of
from compress.channels.settings import PruneSettings
from compress.checkpoints.placement import compute_dtype, resolve_device, resolve_dtype
from compress.checkpoints.source import Source
from compress.data.images import ImageData, load_images, read_processing
from compress.errors import RequestError
from compress.numerics.counter import permutation
from compress.numerics.ranks import ALONE, Team
from compress.progress import Progress
from compress.reports.clock import Clock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Say = Callable[[str], None]
_SIDE = 224  # of images, where neither the config nor the processor says


@dataclass
class Job:
    """The network and what the steps share.

    Attributes:
        model: dense, on its device, in evaluation mode, in the dtype that is computed in.
        groups: what is coupled.
        costs: in closed form.
        limits: floors and rounding.
        example: pixel values [1, 3, H, W] as the model takes them.
        data: train, validation and test; None where nothing needs images.
        notes: plain sentences for the receipt.
        extra: what steps add to the receipt.
        team: the processes that share the training.
    """

    source: Source
    settings: PruneSettings
    model: PreTrainedModel
    groups: list[Group]
    costs: Costs
    limits: Bounds
    example: Tensor
    data: ImageData | None
    device: str
    dtype: torch.dtype
    progress: Progress
    clock: Clock
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    team: Team = ALONE

    def images(self) -> ImageData:
        """The images, where the settings have seen to it that there are some."""
        assert self.data is not None
        return self.data

    def measure(self, keeps: Tensor) -> Tensor:
        """Return what the budget bounds, for units kept [..., G]: parameters or MACs."""
        bounded = "parameters" if self.settings.keep_params is not None else "macs"
        return self.costs.measure(bounded, keeps)

    def calibration(self) -> Iterator[dict[str, Tensor]]:
        """Yield batches of the training images that criteria and repair look at; not augmented.

        Which ones and in which order follows from the seed alone; the split into batches from
        `batch_size`.
        """
        train = self.images().train
        order = permutation(self.settings.seed, 0, len(train))
        rows = [int(row) for row in order[: self.settings.calib_samples]]
        yield from train.batches(self.settings.batch_size, rows=rows)

    @property
    def calibration_batches(self) -> int:
        """How many batches `calibration` yields."""
        count = min(self.settings.calib_samples, len(self.images().train))
        return -(-count // self.settings.batch_size)


def open_job(
    source: Source,
    settings: PruneSettings,
    progress: Progress,
    clock: Clock,
    team: Team = ALONE,
) -> Job:
    """Check all that can be checked before anything is computed, and read the images.

    Raises:
        RequestError: no image classifier, nothing that can be removed, images that can't be used.
    """
    device = team.device(resolve_device(settings.device))
    resolve_dtype(settings.dtype)
    kind = source.model_class().__name__
    if "ImageClassification" not in kind:
        raise RequestError(
            f"`{source.name}` is a `{kind}`; pass-prune cuts image classifiers",
            "text models: compress alpha-prune, lowrank-svd or cd-moe-condense",
        )
    source.check_finite(progress)
    dtype = compute_dtype(source.dtype, device, source.bytes_on_disk())
    model = source.load(dtype if dtype != source.dtype else None, device)
    example = _example(source, settings, device, dtype)
    groups = find_groups(model, example, prune=settings.prune)
    costs = measure_costs(model, example, groups)
    limits = bounds(groups, min_keep=settings.min_keep, round_to=settings.round_to)
    data = None
    if settings.data is not None:
        processing = read_processing(
            source.directory, settings.image_size, source.config.model_type
        )
        data = load_images(
            settings.data,
            processing,
            None if settings.new_head else source.config,
            skip_bad=settings.skip_bad,
            least=stride_of(model, _large(source, example)),
            progress=progress,
        )
        if "pass" in (settings.method, *settings.baselines):
            make_prompt(settings.prompt, data.train.side, settings.prompt_size)  # or refuse it
        if settings.new_head:
            replace_head(model, data.classes, settings.seed)
        example = next(data.train.batches(1, limit=1))["pixel_values"].to(device, dtype)
        costs = measure_costs(model, example, groups)
    job = Job(
        source, settings, model, groups, costs, limits, example, data, device, dtype,
        progress, clock, team=team,
    )  # fmt: skip
    job.notes.extend(data.notes if data is not None else ())
    share = settings.keep_params if settings.keep_params is not None else settings.keep
    if share is not None:
        check_reachable(job.measure, share * float(job.measure(costs.widths)), limits)
    return job


def _large(source: Source, example: Tensor) -> Tensor:
    """Return an example on which the stride shows: large, where the network takes any size."""
    if getattr(source.config, "image_size", None) is not None or example.shape[-1] >= _SIDE:
        return example
    return example.new_zeros(*example.shape[:2], _SIDE, _SIDE)


def _example(source: Source, settings: PruneSettings, device: str, dtype: torch.dtype) -> Tensor:
    """Return pixel values of the size that the model is made for; their values don't matter."""
    side: Any = settings.image_size or getattr(source.config, "image_size", None)
    if side is None:
        side = _processor_side(source) or _SIDE
    height, width = (side, side) if isinstance(side, int) else tuple(side)[:2]
    channels = int(getattr(source.config, "num_channels", 3) or 3)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, channels, height, width, generator=generator).to(device, dtype)


def _processor_side(source: Source) -> Any:
    """Return the side that the checkpoint's image processor brings images to, if it has one."""
    try:
        processor = read_processing(source.directory, None, source.config.model_type).processor
    except RequestError:
        return None
    size: Any = getattr(processor, "crop_size", None) or getattr(processor, "size", None)
    if hasattr(size, "get"):
        return size.get("height") or size.get("shortest_edge")
    return size
