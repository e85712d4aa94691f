"""The model card of a result: README.md with the metadata that the Hub reads, from its receipt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

from compress.reports import formats as fmt
from compress.reports.receipt import Receipt
from compress.reports.tables import auto_class, receipt_rows

FILE_NAME = "README.md"
_MARK = "<!-- written by compress; what stands below is made from receipt.json -->"
_KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag", "base_model")
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_SOURCES = {
    "alpha-prune": "AlphaPruning (arXiv 2410.10912), with the mask of the method named below",
    "cd-moe-condense": "Condense, Don't Just Prune (arXiv 2412.00069)",
    "lowrank-svd": "SVD-LLM and the work after it; LR-SMS (arXiv 2410.07771) from scratch",
    "pass-prune": "PASS (arXiv 2407.17412)",
    "train-meap": "Mask-Enhanced Autoregressive Prediction (arXiv 2502.07490)",
    "train-mixln": "Mix-LN (arXiv 2412.13795), LayerNorm Scaling (arXiv 2502.05795)",
    "train-spam": "SPAM (arXiv 2501.06842), Stable-SPAM (arXiv 2502.17055)",
}
# Where a run was and how it went: nothing that a reader of the model needs.
_NOT_SETTINGS = ("output", "device", "batch_size", "overwrite", "resume", "cache", "plan_out")


def write_card(directory: Path, receipt: Receipt) -> Path | None:
    """Write README.md beside a model; what the card of the model that was read says of licence,
    language and origin is taken over from the README.md that lies there.

    Args:
        directory: the result; without a config.json there is no model, and no card.
        receipt: of the run.

    Returns:
        The file; None where there is no model.
    """
    path = directory / FILE_NAME
    config = directory / "config.json"
    if not config.is_file():
        return None
    before = _metadata(path)
    text = card_text(receipt, before, json.loads(config.read_text(encoding="utf-8")))
    path.write_text(text, encoding="utf-8")
    return path


def card_text(receipt: Receipt, before: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the whole card.

    Args:
        receipt: of the run.
        before: metadata of the card of the model that was read.
        config: config.json of the result.
    """
    source = receipt.model.source if receipt.model else None
    short = source if source and _HUB_ID.match(source) else Path(source).name if source else None
    kept = {key: before[key] for key in _KEPT if before.get(key)}
    if source and _HUB_ID.match(source) and not Path(source).exists():
        kept["base_model"] = source
    tags = [str(tag) for tag in before.get("tags") or ()]
    data = ModelCardData(
        library_name="transformers",
        tags=list(dict.fromkeys([*tags, "compress", receipt.command])),
        **kept,
    )
    title = f"{short or config.get('model_type', 'model')}, {receipt.command}"
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n{_MARK}\n",
        f"# {title}\n",
        _opening(receipt, short),
        f"## How to load\n\n{_loading(config)}",
        *_results(receipt),
        *_settings(receipt),
        f"## Limits\n\n{_limits(receipt)}",
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _metadata(path: Path) -> dict[str, Any]:
    try:
        return dict(metadata_load(path) or {})
    except (OSError, ValueError):
        return {}
    except Exception as error:  # YAML that can't be read: pyyaml's errors have no common builtin
        if type(error).__module__.startswith("yaml"):
            return {}
        raise


def _opening(receipt: Receipt, source: str | None) -> str:
    method = _SOURCES.get(receipt.command)
    made = f"`compress {receipt.command}` made this checkpoint"
    made += f" from `{source}`." if source else "."
    return f"{made} Method: {method}.\n" if method else f"{made}\n"


def _loading(config: Mapping[str, Any]) -> str:
    quantised = config.get("quantization_config") or {}
    auto = auto_class((config.get("architectures") or [None])[0])
    lines, trust = [f"from transformers import {auto}", ""], ""
    if quantised.get("quant_method") == "compress":
        lines.insert(0, "import compress  # registers the format of the edited layers")
    if config.get("auto_map"):
        name = next(name for name in config["auto_map"] if name != "AutoConfig")
        lines[0], auto, trust = f"from transformers import {name}", name, ", trust_remote_code=True"
    lines.append(f'model = {auto}.from_pretrained("DIRECTORY OR HUB ID"{trust})')
    return "```python\n" + "\n".join(lines) + "\n```\n"


def _results(receipt: Receipt) -> list[str]:
    rows = [list(row) for row in receipt_rows(receipt)]
    if not rows:
        return []
    table = fmt.markdown(["", "before", "after", "change", ""], rows, "lrrll")
    return [f"## Results\n\nMeasured in the run that made it, before and after alike.\n\n{table}"]


def _settings(receipt: Receipt) -> list[str]:
    rows = [
        [f"`{key}`", f"`{_short(value)}`"]
        for key, value in sorted(receipt.settings.items())
        if key not in _NOT_SETTINGS and value not in (None, False, "", [], ())
    ]
    if receipt.seed is not None:
        rows.append(["`seed`", f"`{receipt.seed}`"])
    made = ", ".join(f"{name} {version}" for name, version in receipt.versions.items())
    table = fmt.markdown(["setting", "value"], rows, "ll") if rows else ""
    return [f"## Settings\n\n{table}\nMade with {made}. The whole receipt is `receipt.json`.\n"]


def _short(value: Any) -> str:
    """A setting without the directories of the machine that it ran on."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return ", ".join(
        Path(v).name if isinstance(v, str) and v.startswith(("/", "./", "../", "~")) else str(v)
        for v in values
    )


def _limits(receipt: Receipt) -> str:
    said = [f"- {note}" for note in receipt.notes]
    said.append(
        "- The figures above are all that was measured; other languages, tasks and uses weren't. "
        "What the original model must not be used for, this one must not be used for either."
    )
    return "\n".join(said) + "\n"
