"""What structure alone doesn't tell: the only place that knows single model families."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

# Options that make a model change its weights at its first forward, with the value that stops it.
# A skeleton has no weights by then. The function stays the same but for rounding: rwkv divides by
# powers of two, weights and activations alike.
_STILL: dict[str, Any] = {"rescale_every": 0}


def keep_weights_still(config: PretrainedConfig) -> None:
    """Turn off, in place, what would change weights while the model runs."""
    for option, value in _STILL.items():
        if hasattr(config, option):
            setattr(config, option, value)
