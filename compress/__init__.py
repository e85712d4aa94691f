"""Make transformer, vision and speech checkpoints smaller, and train ones that stay healthy.

`import compress` brings in neither torch nor transformers: names are resolved when first used.
It does register the checkpoint format with transformers (at once where transformers is loaded,
else when it is), so that plain `AutoModel….from_pretrained` opens edited checkpoints.
"""

from __future__ import annotations

import importlib
from typing import Any

from compress.checkpoints import hook as _hook

__version__ = "0.1.0"

_LAZY = {
    "load": "compress.checkpoints.save",
    "save": "compress.checkpoints.save",
    "alpha_prune": "compress.sparsity.command",
    "calib_study": "compress.study.command",
    "cd_moe_condense": "compress.experts.command",
    "lowrank_svd": "compress.lowrank.command",
    "pass_prune": "compress.channels.command",
    "train_spam": "compress.training.command",
    "train_meap": "compress.training.command",
    "train_mixln": "compress.training.command",
    "train_side": "compress.drought.command",
    "predict_side": "compress.drought.predicting",
    "inspect": "compress.spectra.inspect",
    "evaluate": "compress.evaluation.evaluate",
    "export": "compress.exporting",
    "report": "compress.reports.compare",
    "run": "compress.recipes.command",
    "demo": "compress.demonstration",
    "doctor": "compress.diagnosis",
}
_ROOMS = {
    "calibration",
    "channels",
    "checkpoints",
    "data",
    "drought",
    "errors",
    "evaluation",
    "experts",
    "lowrank",
    "numerics",
    "recipes",
    "reports",
    "sparsity",
    "spectra",
    "study",
    "training",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"compress.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module `compress` has no attribute `{name}`")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_ROOMS})


def _know_drought_config() -> None:
    importlib.import_module("compress.drought.registering").register_config()


def _know_drought_model() -> None:
    importlib.import_module("compress.drought.registering").register_model()


_hook.install()
_auto = "transformers.models.auto"
_hook.when_imported(f"{_auto}.configuration_auto", "AutoConfig", _know_drought_config)
_hook.when_imported(f"{_auto}.modeling_auto", "AutoModel", _know_drought_model)
