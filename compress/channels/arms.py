"""One method from the dense network to a cut one, scored at every step; baselines are arms too."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.channels.cutting import cut
from compress.channels.growing import grow
from compress.channels.masks import Masks
from compress.channels.passing import search_masks, tune_network
from compress.channels.preparing import Job, Say
from compress.channels.repair import least_squares, reestimate
from compress.channels.selecting import choose, kept_counts, scores_of
from compress.channels.trials import TOLERANCE
from compress.errors import RunError
from compress.evaluation.accuracy import Accuracy, accuracy
from compress.reports.receipt import write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.data.images.prompting import SavedPrompt


@dataclass
class Arm:
    """What became of the network by one method.

    Attributes:
        name: the method.
        masks: for each group bool [width], True = keep.
        stages: "cut", "repaired", "tuned" -> accuracy on test, as far as they were.
        model: the network at the last stage.
        prompt: learned beside it.
        told: what the receipt tells of the steps.
    """

    name: str
    masks: list[Tensor]
    stages: dict[str, Accuracy] = field(default_factory=dict)
    model: PreTrainedModel | None = None
    prompt: SavedPrompt | None = None
    told: dict[str, Any] = field(default_factory=dict)

    def as_receipt(self, job: Job) -> dict[str, Any]:
        """Shares of the dense network left, and accuracies by stage."""
        keeps = kept_counts(self.masks)
        shares = {
            name: float(job.costs.measure(name, keeps) / job.costs.measure(name, job.costs.widths))
            for name in ("macs", "parameters")
        }
        stages = {stage: found.as_receipt() for stage, found in self.stages.items()}
        return {**shares, **stages, **self.told}


def choose_masks(job: Job, name: str, place: Path, say: Say) -> Arm:
    """Choose what one method keeps, or read what an interrupted run had chosen.

    Raises:
        RequestError: the budget can't be reached.
    """
    from compress.data.images.prompting import read_prompt

    place.mkdir(parents=True, exist_ok=True)
    file = place / "masks.json"
    if file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        return Arm(name, masks_from(job, kept["keep"]), prompt=read_prompt(place),
                   told=kept["told"])  # fmt: skip
    begin = time.perf_counter()
    prompt: SavedPrompt | None = None
    told: dict[str, Any] = {}
    if name == "pass":
        masks, prompt, told["search"] = search_masks(job, target_of(job), place / "search", say)
    else:
        masks = choose(job, scores_of(job, name), name)
    masks = masks_from(job, job.team.from_first(lambda: kept_units(masks)))  # timings may differ
    told["choose_seconds"] = time.perf_counter() - begin
    if prompt is not None:
        prompt.save(place)
    write_atomic(file, json.dumps({"keep": kept_units(masks), "told": told}))
    return Arm(name, masks, prompt=prompt, told=told)


def target_of(job: Job) -> float:
    """What the network may cost at most, in MACs or parameters."""
    settings = job.settings
    share = settings.keep_params if settings.keep_params is not None else settings.keep
    assert share is not None
    return share * float(job.measure(job.costs.widths))


def kept_units(masks: Sequence[Tensor]) -> list[list[int]]:
    """Masks as lists of the units kept."""
    return [mask.nonzero()[:, 0].tolist() for mask in masks]


def masks_from(job: Job, kept: Sequence[Sequence[int]]) -> list[Tensor]:
    """The reverse of kept_units."""
    masks = []
    for group, units in zip(job.groups, kept, strict=True):
        mask = torch.zeros(group.width, dtype=torch.bool)
        mask[torch.tensor(list(units), dtype=torch.int64)] = True
        masks.append(mask)
    return masks


def run_arm(job: Job, arm: Arm, place: Path, say: Say, *, tune: bool = True) -> Arm:
    """Cut, repair and train, and score each stage on the test images.

    Args:
        job: the network and the images.
        arm: with its masks.
        place: a directory for checkpoints of the training.
        say: gets lines for the reader.
        tune: whether to train, if the settings say so.
    """
    settings = job.settings
    dense = copy.deepcopy(job.model)
    if arm.name == "growreg":
        with job.clock("grow"):
            _grown(job, dense, arm.masks, place)
    with job.clock("apply"):
        network = copy.deepcopy(dense)
        cut(network, job.groups, arm.masks)
        if arm.name != "growreg":
            arm.told["removal"] = removal(job, arm.masks, network)
    _score(job, arm, network, "cut")
    if settings.repair != "none" and job.data is not None:
        with job.clock("repair"):
            network = _repaired(job, arm, dense, network)
        _score(job, arm, network, "repaired")
    if settings.finetune_epochs and tune:
        with job.clock("tune"):
            arm.prompt, arm.told["tuning"] = tune_network(
                job, network, arm.prompt, place / "tuning", say
            )
        _score(job, arm, network, "tuned")
    arm.model = network.eval()
    return arm


def _grown(job: Job, dense: PreTrainedModel, masks: list[Tensor], place: Path) -> None:
    """Train under the growing penalty, or read what an interrupted run had trained."""
    from safetensors.torch import load_file, save_file

    file = place / "grown.safetensors"
    if not file.is_file():
        grow(job, dense, masks)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file({k: v.contiguous() for k, v in dense.state_dict().items()}, partial)
        partial.replace(file)
    dense.load_state_dict(load_file(file, device=str(job.device)))


def _repaired(
    job: Job, arm: Arm, dense: PreTrainedModel, network: PreTrainedModel
) -> PreTrainedModel:
    """Repair as the settings say; `dense` is used up by least squares."""
    if job.settings.repair == "lsq":
        errors = least_squares(
            dense, job.groups, arm.masks, job.calibration,
            total=job.calibration_batches, progress=job.progress,
        )  # fmt: skip
        if errors:
            means = [sum(pair[i] for pair in errors.values()) / len(errors) for i in (0, 1)]
            arm.told["least_squares"] = {
                "consumers": len(errors), "dropped_error": means[0], "refitted_error": means[1],
            }  # fmt: skip
        network = dense
        cut(network, job.groups, arm.masks)
    arm.told["batch_norms"] = reestimate(
        network, job.calibration(), total=job.calibration_batches, progress=job.progress
    )
    return network


@torch.no_grad()
def removal(job: Job, masks: list[Tensor], network: PreTrainedModel) -> dict[str, Any]:
    """Compare the cut network with the masked dense one on a few images.

    Returns:
        "difference": the largest of the logits, as a share of their standard deviation; "exact":
        whether all groups are such that only rounding should differ.

    Raises:
        RunError: it should, and more does.
    """
    images = job.example
    if job.data is not None:
        images = next(job.calibration())["pixel_values"][:8].to(job.device, job.dtype)
    with Masks(job.model, job.groups) as hooks:
        hooks.set(masks)
        wanted = job.model(pixel_values=images).logits.float()
    found = network.eval()(pixel_values=images).logits.float()
    spread = float(wanted.std()) or 1.0
    worst = float((found - wanted).abs().max()) / spread
    touched = [g for g, m in zip(job.groups, masks, strict=True) if not bool(m.all())]
    exact = all(group.exact for group in touched)
    if exact and worst > TOLERANCE.get(job.dtype, 0.1):
        raise RunError(
            f"the cut network's logits differ by {worst:.2g} of their spread from those of the "
            "masked one, though every group should be exact",
            "this is a bug worth reporting, with the model's architecture; nothing was written",
        )
    return {"difference": worst, "exact": exact}


def _score(job: Job, arm: Arm, network: PreTrainedModel, stage: str) -> None:
    if job.data is None:
        return
    with job.clock("evaluate"):
        found = accuracy(
            network, job.data.test, batch_size=job.settings.batch_size,
            task=f"{arm.name}, {stage}", progress=job.progress,
        )  # fmt: skip
    arm.stages[stage] = replace(found, skipped=job.data.skipped)


def summary(arms: Mapping[str, Arm], dense: Accuracy | None, tuned: bool) -> list[list[str]]:
    """Rows of a table: method, accuracy at each stage with its standard error."""
    stages = ("cut", "repaired", *(("tuned",) if tuned else ()))
    rows = []
    if dense is not None:
        rows.append(["dense", f"{dense.top1:.3f} ± {dense.stderr:.3f}", *[""] * (len(stages) - 1)])
    for name, arm in arms.items():
        cells = [arm.stages.get(stage) for stage in stages]
        rows.append([name, *("" if c is None else f"{c.top1:.3f} ± {c.stderr:.3f}" for c in cells)])
    return rows
