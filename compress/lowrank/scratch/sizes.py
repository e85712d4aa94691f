"""Speech models by name, for a random start."""

from __future__ import annotations

from typing import NamedTuple

from transformers import ParakeetCTCConfig


class SpeechSize(NamedTuple):
    """One Conformer with a CTC head.

    Attributes:
        hidden, mlp, heads, layers, kernel: of its blocks; two half-step feed-forward parts each.
        subsampling: input frames of one output frame.
        channels: of the convolutions that do this.
        mels: log-mel bins.
        rate: samples a second.
    """

    hidden: int
    mlp: int
    heads: int
    layers: int
    kernel: int
    subsampling: int
    channels: int
    mels: int
    rate: int


SPEECH: dict[str, SpeechSize] = {
    # A few words, minutes on a CPU: short words need the finer frames of a factor of 4.
    "conformer-tiny": SpeechSize(96, 384, 4, 3, 9, 4, 32, 40, 8000),
    "conformer-small": SpeechSize(256, 1024, 4, 12, 31, 4, 128, 80, 16000),
    # The encoder of auto_avsr, which LR-SMS builds on (behind another front end).
    "conformer-base": SpeechSize(768, 3072, 12, 12, 31, 4, 256, 80, 16000),
}


def speech_config(size: SpeechSize) -> ParakeetCTCConfig:
    """Return a size's config; symbols and visual features are added once they are known.

    Layers are never dropped at random (`layerdrop`): runs are compared.
    """
    return ParakeetCTCConfig(
        encoder_config={
            "hidden_size": size.hidden,
            "intermediate_size": size.mlp,
            "num_attention_heads": size.heads,
            "num_hidden_layers": size.layers,
            "conv_kernel_size": size.kernel,
            "subsampling_factor": size.subsampling,
            "subsampling_conv_channels": size.channels,
            "num_mel_bins": size.mels,
            "layerdrop": 0.0,
        }
    )
