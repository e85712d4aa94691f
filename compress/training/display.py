"""What a run tells while it trains: a live bar, a line now and then, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from compress.progress import Progress, silent
from compress.reports import formats as fmt
from compress.reports.pictures import new_figure, save_figure

METRICS = "metrics.jsonl"
LINES = 10  # lines that a whole run says


class Display(TrainerCallback):
    """Writes and shows what each log holds; does nothing but on the first process.

    Args:
        metrics: the file that gets a JSON line per log; a resumed run cuts it where it goes on.
        tokens_a_step: of the whole batch.
        progress, say: where to.
        tensorboard: a directory for event files, None for none.
        unit: what is counted instead of tokens.
        task: the bar's name.
    """

    def __init__(
        self,
        metrics: Path,
        *,
        tokens_a_step: float,
        progress: Progress = silent,
        say: Callable[[str], None] = lambda text: None,
        tensorboard: Path | None = None,
        unit: str = "tokens",
        task: str = "train",
    ) -> None:
        self.metrics = metrics
        self.tokens_a_step = tokens_a_step
        self.progress = progress
        self.say = say
        self._tensorboard = tensorboard
        self._unit, self._task = unit, task
        self._writer: Any = None
        self._file: IO[str] | None = None
        self._note = ""
        self._seen = 0
        self._since = 0.0
        self._saving_since = 0.0
        self._steps, self._seconds = 0, 0.0
        self._said = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Open the files; drop lines of steps that are to be done again."""
        if not state.is_world_process_zero:
            return
        kept = read_metrics(self.metrics, state.global_step)
        with self.metrics.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in kept)
        self._file = self.metrics.open("a", encoding="utf-8")
        self._writer = _tensorboard_writer(self._tensorboard, state.global_step)
        self._seen, self._since = state.global_step, time.perf_counter()
        self._said = LINES * state.global_step // max(state.max_steps, 1)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Move the bar; log what is saved, so that a resumed run's means begin where they did."""
        if control.should_save:
            control.should_log = True
        self._saving_since = time.perf_counter()
        if state.is_world_process_zero:
            self.progress(self._task, state.global_step, state.max_steps, self._note)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line, and show it."""
        if self._file is None or not logs or "train_runtime" in logs:
            return
        entry: dict[str, Any] = {"step": state.global_step}
        entry |= {key: value for key, value in logs.items() if key not in ("epoch", "total_flos")}
        if "loss" in logs:
            entry |= self._pace(state.global_step)
            self._note = _note(entry, self._unit)
        self._file.write(json.dumps({k: _finite(v) for k, v in entry.items()}) + "\n")
        self._file.flush()
        if control.should_save:  # a checkpoint never knows more than this file
            os.fsync(self._file.fileno())
        if self._writer is not None:
            for key, value in entry.items():
                if key != "step" and isinstance(value, (int, float)):
                    self._writer.add_scalar(f"train/{key}", value, state.global_step)
        self._tell(entry, state)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Leave the time of a save out of the pace."""
        self._since += time.perf_counter() - self._saving_since

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of what is done meanwhile, such as validation, out of the pace."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start
            self._saving_since = time.perf_counter()

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second of all steps of this process so far, saves and validation left out."""
        return self._steps * self.tokens_a_step / self._seconds if self._seconds > 0 else None

    def _pace(self, step: int) -> dict[str, float]:
        now = time.perf_counter()
        spent, steps = now - self._since, step - self._seen
        self._seen, self._since = step, now
        self._saving_since = now
        self._steps, self._seconds = self._steps + steps, self._seconds + spent
        tokens = round(step * self.tokens_a_step)
        if spent <= 0 or steps <= 0:
            return {self._unit: tokens}
        pace = steps * self.tokens_a_step / spent
        return {self._unit: tokens, f"{self._unit}_per_s": pace}

    def _tell(self, entry: dict[str, Any], state: TrainerState) -> None:
        """Say a line at each tenth of the run, and each validation."""
        tenth = LINES * state.global_step // max(state.max_steps, 1)
        if "loss" not in entry:
            parts = [f"{k.replace('_', ' ')} {v:.3f}" for k, v in entry.items()
                     if k.endswith("_loss")]  # fmt: skip
            self.say(f"{self._step(state):<12}{'   '.join(parts)}")
        elif tenth > self._said:
            self._said = tenth
            self.say(f"{self._step(state):<12}{self._note.replace(' · ', '   ')}")

    def _step(self, state: TrainerState) -> str:
        name = "step" if self._task == "train" else self._task
        return f"{name} {state.global_step}"

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Close the files."""
        self.close()

    def close(self) -> None:
        """Close the files, also after an error."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _note(entry: dict[str, Any], unit: str) -> str:
    parts = [f"loss {entry['loss']:.3f}", f"lr {entry['learning_rate']:.2e}"]
    if f"{unit}_per_s" in entry:
        parts.append(f"{fmt.scaled([entry[f'{unit}_per_s']], ('', 'k', 'M'))[0]} {unit}/s")
    if "spikes" in entry:
        parts.append(f"spikes {entry['spikes']:,}")
    return " · ".join(parts)


def _finite(value: Any) -> Any:
    """JSON has no NaN: the rare number that isn't finite is written as text."""
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value


def read_metrics(path: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """Read metrics.jsonl, up to a step; a line torn by a kill is left out."""
    entries = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if last_step is None or entry["step"] <= last_step:
                entries.append(entry)
    return entries


def _tensorboard_writer(directory: Path | None, step: int) -> Any:
    """A writer of event files where TensorBoard is installed, else None."""
    if directory is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=step)


def loss_png(path: Path, entries: list[dict[str, Any]], title: str) -> None:
    """Draw the losses of metrics.jsonl by step: training, and validation where there is one."""
    figure, ((axes,),) = new_figure(1, 1, (7, 4), dpi=120)
    keys = dict.fromkeys(k for e in entries for k in e if k == "loss" or k.endswith("_loss"))
    for key in keys:
        points = [(e["step"], e[key]) for e in entries if isinstance(e.get(key), float)]
        label = "training" if key == "loss" else key.removesuffix("_loss").replace("_", " ")
        marker = "o" if len(points) < 20 else None
        axes.plot(*zip(*points), label=label, linewidth=1.2, marker=marker, markersize=3)
    axes.set(xlabel="step", ylabel="loss, nats", title=title)
    axes.grid(alpha=0.3)
    if keys:
        axes.legend(frameon=False)
    save_figure(figure, path)
