"""What a train-* command hands back: the receipt, the place, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.reports.notebook import Displayable
from compress.reports.receipt import Receipt

TRAINING = "training"


@dataclass(frozen=True)
class TrainResult(Displayable):
    """What a run did.

    Attributes:
        receipt: what was measured; None on processes other than the first.
        output: the directory written.
        losses: (step, loss) of every logged mean.
    """

    receipt: Receipt | None
    output: Path
    losses: tuple[tuple[int, float], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The receipt as JSON types."""
        return {} if self.receipt is None else self.receipt.as_dict()

    def render(self) -> str:
        """The loss curve, the figures of the run, and the receipt, for people."""
        if self.receipt is None:
            return ""
        from compress.reports import charts
        from compress.reports.tables import receipt_table

        parts = []
        if len(self.losses) > 2:
            steps, losses = zip(*self.losses)
            parts.append(charts.line(losses, steps, x_label="loss by step", height=8))
        parts.append(training_table(self.receipt.extra.get(TRAINING, {})))
        parts.append(receipt_table(self.receipt, output=self.output))
        return "\n\n".join(part for part in parts if part)


def training_table(entry: dict[str, Any]) -> str:
    """The receipt's "training" block as a table."""
    from compress.reports import formats as fmt

    rows = []
    for label, found in (("training loss", entry.get("loss")), *_valid(entry)):
        if found:
            error = f"(± {found['stderr']:.3f})" if "stderr" in found else ""
            rows.append([label, f"{found['value']:.3f}", error])
    if "tokens" in entry:
        per_second = entry.get("tokens_per_s")
        pace = f"{fmt.scaled([per_second], ('', 'k', 'M'))[0]} a second" if per_second else ""
        rows.append(["tokens", fmt.count_text(entry["tokens"]), pace])
    if "trained" in entry:
        some = entry["trained"]
        share = f"of {fmt.count_text(some['of'])}, the others stay"
        rows.append(["trained", fmt.count_text(some["parameters"]), share])
    if entry.get("spikes"):
        rows.append(["gradient spikes", *_spikes(entry["spikes"])])
    if "injected" in entry:
        put = entry["injected"]
        size = f"{put['kind']}, {put['factor']:g} times as large"
        rows.append(["spikes put in", f"{put['steps']} steps", size])
    if "quantise" in entry:
        how = entry["quantise"]
        stored = f"{how['format']}, weights in OUT {how['stored']}"
        rows.append(["4-bit layers", str(how["modules"]), stored])
    if entry.get("skipped"):
        rows.append(["steps skipped", str(entry["skipped"]), "loss or gradient wasn't finite"])
    if "optimizer_state_bytes" in entry:
        size = fmt.bytes_text(entry["optimizer_state_bytes"])
        rows.append(["optimizer state", size, entry.get("optimizer", "")])
    return fmt.table(["", "", ""], rows, "lrl") if rows else ""


def _spikes(entry: dict[str, Any]) -> tuple[str, str]:
    """How many, and where most of them were."""
    if not entry["count"]:
        return "0", f"no g² above {entry['threshold']:g} times its mean"
    first = next(iter(entry["by_parameter"]))
    steps = f"in {entry['steps']} step" + "s" * (entry["steps"] != 1)
    return f"{entry['count']:,}", f"{steps}; most in {first}"


def _valid(entry: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{name.replace('_', ' ')} loss", found) for name, found in entry.get("valid", {}).items()
    ]
