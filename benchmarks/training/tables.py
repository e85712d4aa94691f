"""The tables of README.md from the measurements beside this file.

    python benchmarks/training/tables.py            print them
    python benchmarks/training/tables.py --write    put them into README.md, between its marks

Losses are in nats a token on held-out text: mean over seeds, and the standard error of that mean. A
difference to another arm is over the seeds that both have, paired: same start, same tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from arms import NORMS, SWEEPS
from step_time import table as step_table

PLACE = Path(__file__).parent
Lines = dict[str, dict[int, dict[str, Any]]]


def read_lines(path: Path) -> Lines:
    """Arm -> seed -> its line."""
    found: Lines = {}
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            found.setdefault(line["arm"], {})[line["seed"]] = line
    return found


def mean_error(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean, and its standard error where there are two or more."""
    some = list(values)
    error = statistics.stdev(some) / math.sqrt(len(some)) if len(some) > 1 else None
    return statistics.fmean(some), error


def shown(values: Iterable[float], digits: int = 3) -> str:
    """Mean ± standard error (seeds)."""
    some = list(values)
    if not some:
        return ""
    mean, error = mean_error(some)
    spread = f" ± {error:.{digits}f}" if error is not None else ""
    return f"{mean:.{digits}f}{spread} ({len(some)})"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table; a note where no row is there yet."""
    if not rows:
        return "No run has finished yet."
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def losses(lines: Lines, arm: str, name: str = "held_out") -> dict[int, float]:
    """Seed -> a figure of an arm."""
    return {seed: line[name] for seed, line in sorted(lines.get(arm, {}).items()) if name in line}


def against(lines: Lines, arm: str, other: str) -> str:
    """The paired difference of held-out losses."""
    own, base = losses(lines, arm), losses(lines, other)
    both = [own[seed] - base[seed] for seed in own if seed in base]
    return shown(both) if both and arm != other else ""


def failures(lines: Lines, arm: str) -> str:
    """How many runs of an arm broke off."""
    count = sum("failed" in line for line in lines.get(arm, {}).values())
    return str(count) if count else ""


def group(lines: Lines, prefix: str) -> list[str]:
    """Arms of a group, in the order in which they first finished."""
    return [arm for arm in lines if arm.startswith(prefix + "/")]


def optimizers(lines: Lines) -> str:
    """Optimizers, clean and with spikes."""
    kinds = ("clean", "noise", "layer")
    names = dict.fromkeys(a.partition("/")[2] for kind in kinds for a in group(lines, kind))
    rows = []
    for name in names:
        row = [name]
        for kind in kinds:
            arm = f"{kind}/{name}"
            row += [shown(losses(lines, arm).values()), against(lines, arm, f"{kind}/adam+clip")]
        rows.append(row)
    head = ["optimizer", "clean", "against clip", "noise spikes", "against clip", "layer spikes",
            "against clip"]  # fmt: skip
    return markdown(head, rows)


def norms(lines: Lines) -> str:
    """Norm placements at two depths."""
    rows = []
    for depth in ("deep12", "deep24"):
        for kind in NORMS:
            arm = f"{depth}/{kind}"
            if arm not in lines:
                continue
            gradients = [line["layers"]["gradient_2d"] for line in _whole(lines, arm)]
            first, middle, last = (
                shown([g[place] / max(g) for g in gradients], 2) for place in _places(gradients)
            )
            ratios = shown([max(g) / min(g) for g in gradients], 1)
            rows.append([depth[4:], kind, shown(losses(lines, arm).values()),
                         against(lines, arm, f"{depth}/pre"), ratios, first, middle, last,
                         failures(lines, arm)])  # fmt: skip
    head = ["layers", "norm", "held-out loss", "against pre", "gradient norm, largest / smallest",
            "first layer", "middle", "last", "broke off"]  # fmt: skip
    return markdown(head, rows)


def _whole(lines: Lines, arm: str) -> list[dict[str, Any]]:
    return [line for line in lines[arm].values() if "layers" in line]


def _places(gradients: list[list[float]]) -> tuple[int, int, int]:
    size = len(gradients[0]) if gradients else 1
    return 0, size // 2, size - 1


def by_layer(lines: Lines) -> str:
    """Each layer of the deep models: gradient norm, variance, loss without it; means over seeds."""
    rows = []
    for depth in ("deep12", "deep24"):
        for name in ("gradient_2d", "variance", "loss_increase"):
            for kind in NORMS:
                found = [line["layers"][name] for line in _whole_of(lines, f"{depth}/{kind}")]
                if found:
                    means = (statistics.fmean(values) for values in zip(*found))
                    rows.append([depth[4:], name, kind, " ".join(f"{v:.2g}" for v in means)])
    return markdown(["layers", "figure", "norm", "first layer to last"], rows)


def _whole_of(lines: Lines, arm: str) -> list[dict[str, Any]]:
    return _whole(lines, arm) if arm in lines else []


def small(lines: Lines, prefix: str, base: str, extra: Mapping[str, str]) -> str:
    """A group beside one arm of another."""
    arms = [arm for arm in (base, *group(lines, prefix)) if arm in lines]
    rows = [
        [arm if arm == base else arm.partition("/")[2], shown(losses(lines, arm).values()),
         against(lines, arm, base),
         *(shown(losses(lines, arm, name).values(), 0) for name in extra.values())]
        for arm in arms
    ]  # fmt: skip
    return markdown(["arm", "held-out loss", f"against {base}", *extra], rows)


def sweeps(lines: Lines, path: Path) -> str:
    """Held-out loss by learning rate."""
    found: dict[str, dict[float, float]] = {}
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if line["arm"].startswith("sweep/"):
                own = found.setdefault(line["arm"][6:], {})
                own[line["lr"]] = line.get("held_out", math.inf)
    rows = []
    for name in SWEEPS:
        tried = sorted(found.get(name, {}).items())
        if tried:
            best = min(loss for _, loss in tried)
            said = ", ".join(
                f"**{rate:g}: {loss:.3f}**" if loss == best else f"{rate:g}: {loss:.3f}"
                for rate, loss in tried
            )
            rows.append([name, said])
    return markdown(["sweep", "learning rate: held-out loss"], rows)


def follow_ups(lines: Lines) -> str:
    """Fine-tuning and preference tuning of the norm arms' checkpoints."""
    rows = []
    for kind in NORMS:
        tuned, liked = f"fine-tune/{kind}", f"prefer/{kind}"
        row = [kind, shown(losses(lines, f"deep12/{kind}").values())]
        row.append(shown(losses(lines, tuned, "answer_loss").values()))
        preferred = list(lines.get(liked, {}).values())
        for when in ("before", "after"):
            row.append(shown([100 * line[when]["banned"] for line in preferred], 1))
        rise = [line["after"]["held_out"] - line["before"]["held_out"] for line in preferred]
        row.append(shown(rise))
        if any(row[2:]):
            rows.append(row)
    head = ["norm", "pre-trained", "GSM8K answers, tuned", "banned tokens, %", "after DPO, %",
            "rise of held-out loss by DPO"]  # fmt: skip
    return markdown(head, rows)


def retrieval(lines: Lines) -> str:
    """Long-context tasks, with and without masks in training."""
    rows = []
    for arm in ("retrieve/adam+clip", "retrieve/meap"):
        some = list(lines.get(arm, {}).values())
        for task in some[0]["tasks"] if some else ():
            found = [line["tasks"][task] for line in some]
            rows.append([
                arm.partition("/")[2], task, shown(f["acc"] for f in found),
                f"{found[0]['chance']:.2f}", shown(f["answer_loss"] for f in found),
            ])  # fmt: skip
    return markdown(["arm", "task", "right", "chance", "loss of the right answer"], rows)


def pruning(lines: Lines) -> str:
    """Pruned checkpoints of the norm arms: rise of the held-out loss."""
    names = ("uniform 50%", "alpha 50%", "uniform 70%", "alpha 70%")
    rows = []
    for kind in NORMS:
        some = list(lines.get(f"prune/{kind}", {}).values())
        if not some:
            continue
        row = [kind, shown([line["loss"]["dense"] for line in some])]
        row += [shown([line["loss"][n] - line["loss"]["dense"] for line in some]) for n in names]
        damage = [statistics.fmean(v) for v in zip(*(line["layer_damage"] for line in some))]
        rows.append([*row, " ".join(f"{rise:.3f}" for rise in damage)])
    head = ["norm", "dense", *names, "one layer at 70 %, first to last"]
    return markdown(head, rows)


def census(lines: Lines) -> str:
    """Spikes by parameter of the census runs."""
    rows = []
    for arm in group(lines, "census"):
        for line in lines[arm].values():
            found = line.get("spikes") or {}
            kinds: dict[str, int] = {}
            for name, entry in found.get("by_parameter", {}).items():
                kind = _kind_of(name)
                kinds[kind] = kinds.get(kind, 0) + entry["count"]
            said = ", ".join(f"{kind} {count:,}" for kind, count in _most(kinds))
            ratios = [entry["largest_ratio"] for entry in found.get("by_parameter", {}).values()]
            rows.append([arm.partition("/")[2], f"{found.get('count', 0):,}",
                         f"{found.get('steps', 0)} of {found.get('watched_steps', 0)}", said,
                         f"{max(ratios):.0f}" if ratios else ""])  # fmt: skip
    head = ["model, text", "spikes", "steps with one", "where", "largest g² / v"]
    return markdown(head, rows)


def _kind_of(name: str) -> str:
    if "norm" in name or ".ln_" in name or "layernorm" in name:
        return "norms"
    if any(word in name for word in ("embed", "wte", "wpe")):
        return "embeddings"
    if "lm_head" in name or "embed_out" in name:
        return "head"
    return "attention" if "att" in name else "MLP"


def _most(kinds: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(kinds.items(), key=lambda item: -item[1])


def overhead() -> str:
    """Cost of masks, optimizers and the monitor."""
    parts = []
    for path in sorted(PLACE.glob("overhead*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = []
        for name, arm in found["arms"].items():
            row = [name, f"{arm['milliseconds_a_step']:.1f}"]
            for base in ("stock", "this_trainer"):
                low, high = arm[f"quartiles_to_{base}"]
                row.append(f"{arm[f'ratio_to_{base}']:.3f} ({low:.3f} to {high:.3f})")
            rows.append(row)
        head = ["", "ms a step", "to the stock Trainer", "to this one with AdamW"]
        parts.append(f"{found['machine']}:\n\n{markdown(head, rows)}")
    return "\n\n".join(parts) or "Not measured yet."


def step_times() -> str:
    """Step times on each machine measured."""
    parts = []
    for path in sorted(PLACE.glob("step_time*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        said = f"{found['parameters']:,} parameters in {found['tensors']} tensors"
        parts.append(f"{found['device']}, {said}, {found['dtype']}:\n\n{step_table(found['arms'])}")
    return "\n\n".join(parts) or "Not measured yet."


def tables() -> dict[str, str]:
    """Every table by the name of its mark in README.md."""
    path = PLACE / "grid.jsonl"
    lines = read_lines(path)
    return {
        "step-time": step_times(),
        "overhead": overhead(),
        "sweeps": sweeps(lines, path),
        "optimizers": optimizers(lines),
        "norms": norms(lines),
        "layers": by_layer(lines),
        "bits": small(lines, "4-bit", "clean/adam+clip", {}),
        "meap": small(lines, "meap", "clean/adam+clip", {}),
        "retrieval": retrieval(lines),
        "memory": small(lines, "memory", "clean/adam+clip", {"bytes of state": "state_bytes"}),
        "follow-ups": follow_ups(lines),
        "pruning": pruning(lines),
        "census": census(lines),
    }


def write(readme: Path) -> None:
    """Replace what stands between each pair of marks."""
    text = readme.read_text(encoding="utf-8")
    for name, table in tables().items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"{readme} has no marks {begin} … {end}")
        text = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    readme.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        write(PLACE / "README.md")
        return
    for name, table in tables().items():
        print(f"## {name}\n\n{table}\n")


if __name__ == "__main__":
    main()
