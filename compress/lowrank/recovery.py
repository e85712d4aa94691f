"""Fine-tuning of the factors towards the dense model's outputs, on the package's Trainer.

    loss = KL(softmax(dense) || softmax(factored)), a mean over tokens

where the model puts out logits, else the relative squared error of its hidden states. Only factors
train; both models are whole in memory, in float32 on a CPU, with Adam's moments of the factors.
The last eighth of the calibration sequences is held out: where the loss on it doesn't fall, the
factors stay as the truncation made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress.checkpoints.source import open_source
from compress.errors import RequestError
from compress.lowrank.applying import Targets
from compress.lowrank.modules import place_of
from compress.lowrank.preparing import Job
from compress.lowrank.store import BlockFiles
from compress.training.checkpointing import off_the_file
from compress.training.looping import LoopSettings, loop

HELD_OUT = 8  # one in so many sequences
BATCH = 8
_SAVED = 100  # steps between checkpoints, at least
_PAD = {"labels": -100}


class Recovered(NamedTuple):
    """What fine-tuning did.

    Attributes:
        before, after: the loss on held-out sequences.
        steps: optimizer steps.
        kept: whether the trained factors are used.
        losses: (step, mean loss) of every log.
    """

    before: float
    after: float
    steps: int
    kept: bool
    losses: list[tuple[int, float]]

    def as_dict(self) -> dict[str, Any]:
        """For the receipt."""
        loss = {"before": self.before, "after": self.after}
        return {"steps": self.steps, "held_out_loss": loss, "used": self.kept}


class Distilled(nn.Module):
    """The factored model with the dense one as its teacher. Its parameters are the factors alone,
    and so is what a checkpoint holds.

    Args:
        student: the factored model; it runs as it does when it is used, without dropout.
        teacher: the dense one.
        factors: the student's parameters that train.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, factors: Sequence[nn.Parameter]
    ) -> None:
        super().__init__()
        self.factors = nn.ParameterList(factors)
        # In a tuple, so that the models are no parts of this module, but share its parameters.
        self._models = student.eval(), teacher.eval()

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Return {"loss"} of a batch of the model's own inputs."""
        student, teacher = self._models
        with torch.no_grad():
            wanted = _values(teacher(**batch))
        return {"loss": divergence(wanted, _values(student(**batch)), _mask(batch, wanted))}


def divergence(wanted: Values, found: Values, mask: Tensor | None) -> Tensor:
    """KL of next-token (or class) distributions, or the relative squared error of hidden states.

    Args:
        wanted, found: outputs [..., D] of the dense and the factored model.
        mask: bool over the leading axes, True = a token; None is all.
    """
    one, other = wanted.tensor.float(), found.tensor.float()
    if mask is not None:
        one, other = one[mask], other[mask]
    if wanted.logits:
        left, right = one.log_softmax(-1), other.log_softmax(-1)
        return (left.exp() * (left - right)).sum(-1).mean()
    return (other - one).square().sum() / one.square().sum().clamp(min=1e-30)


class Values(NamedTuple):
    """What a model puts out."""

    tensor: Tensor
    logits: bool


def _values(output: Any) -> Values:
    logits = getattr(output, "logits", None)
    return Values(logits, True) if isinstance(logits, Tensor) else Values(output[0], False)


def _mask(batch: Mapping[str, Any], wanted: Values) -> Tensor | None:
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != wanted.tensor.shape[:2]:
        return None
    return mask.bool()


class Examples:
    """The calibration sequences one by one: what a batch holds for each of its rows.

    Args:
        batches: keyword arguments of the model's forward.
    """

    def __init__(self, batches: Sequence[Mapping[str, Any]]) -> None:
        self._rows: list[dict[str, Tensor]] = []
        for batch in batches:
            tensors = {k: v for k, v in batch.items() if isinstance(v, Tensor) and v.ndim}
            count = len(next(iter(tensors.values())))
            alike = all(len(v) == count for v in tensors.values())
            parts = range(count) if alike else [slice(None)]
            self._rows += [{k: v[i] for k, v in tensors.items()} for i in parts]
            self.whole = not alike

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._rows[index]


class _First:
    """The first rows of others."""

    def __init__(self, rows: Examples, count: int) -> None:
        self._rows, self._count = rows, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._rows[index]


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Put examples into a batch; sequences of different lengths are padded behind a mask."""
    names = [k for k, v in examples[0].items() if isinstance(v, Tensor)]
    batch = {}
    for name in names:
        parts = [example[name] for example in examples]
        batch[name] = nn.utils.rnn.pad_sequence(parts, True, _PAD.get(name, 0))
    lengths = [len(example[names[0]]) for example in examples]
    if len(set(lengths)) > 1 and "attention_mask" not in batch and "input_ids" in batch:
        places = torch.arange(max(lengths))
        batch["attention_mask"] = (places < torch.tensor(lengths)[:, None]).long()
    return batch


def recover(
    job: Job, targets: Targets, files: BlockFiles, result: Path, place: Path
) -> tuple[BlockFiles, Recovered]:
    """Fine-tune the factors, from the last checkpoint in `place` where there is one.

    Args:
        job: the run.
        targets: the units.
        files: their factors.
        result: the checkpoint that holds them.
        place: a directory for training checkpoints, and for the factors found.

    Returns:
        The factors to be used, and what was done.

    Raises:
        RequestError: too few calibration sequences.
        RunError: a loss or gradient isn't finite, or the disk is full.
    """
    rows = Examples(job.batches)
    held = max(1, len(rows) // HELD_OUT)
    fitted = len(rows) - held
    if fitted < 1 or rows.whole:
        raise RequestError(
            f"`--recover` needs sequences to train on and to hold out; there are {len(rows)}",
            "use more --samples",
        )
    dtype = torch.float32 if job.device.startswith("cpu") else job.running
    student = open_source(result).load(dtype, job.device)
    teacher = job.source.load(dtype, job.device).requires_grad_(False)
    for model in (student, teacher):
        off_the_file(model)
    module = Distilled(student, teacher, _factors(student, targets))
    tail = [rows[fitted + i] for i in range(held)]
    before = _measure(module, tail, job.device)
    done = loop(
        module,
        _First(rows, fitted),
        collate,
        LoopSettings(
            steps=job.settings.recover,
            batch_size=min(BATCH, fitted),
            lr=job.settings.recover_lr,
            warmup=0.05,
            optimizer="adamw",
            weight_decay=0.0,
            max_grad_norm=1.0,
            save_every=max(_SAVED, job.settings.recover // 10),
            seed=job.settings.seed,
        ),
        place,
        device=job.device,
        unit="sequences",
        task="recover",
        progress=job.progress,
    )
    after = _measure(module, tail, job.device)
    told = Recovered(before, after, job.settings.recover, after < before, done.losses)
    if not told.kept:
        return files, told
    found = BlockFiles(place / "factors")
    _write(student, targets, files, found)
    return found, told


def _factors(model: nn.Module, targets: Targets) -> list[nn.Parameter]:
    """Freeze all but the factors, and return those; a shared one is there once."""
    model.requires_grad_(False)
    found: dict[int, nn.Parameter] = {}
    for unit in targets.units.values():
        for matrix in unit.matrices:
            module: Any = model.get_submodule(place_of(matrix))
            for part in (module.down.weight, module.up.weight):
                found[id(part)] = part.requires_grad_(True)
    return list(found.values())


@torch.no_grad()
def _measure(module: Distilled, rows: Sequence[dict[str, Tensor]], device: str) -> float:
    """The mean loss on sequences, one at a time."""
    total = 0.0
    for row in rows:
        batch = {k: v.to(device) for k, v in collate([row]).items()}
        total += float(module(**batch)["loss"])
    return total / len(rows)


def _write(model: nn.Module, targets: Targets, files: BlockFiles, found: BlockFiles) -> None:
    """Keep the trained factors as the others are kept, in the same dtypes."""
    for block in targets.blocks:
        tensors = dict(files.read(block))
        for unit in targets.inside(block):
            for matrix in unit.matrices:
                module: Any = model.get_submodule(place_of(matrix))
                parts = {"up": module.up.weight, "down": module.down.weight}
                for part, value in parts.items():
                    name = f"{matrix.name}|{part}"
                    if name in tensors:
                        old = tensors[name]
                        tensors[name] = value.detach().reshape(old.shape).to("cpu", old.dtype)
        found.write(block, tensors, files.note(block))
