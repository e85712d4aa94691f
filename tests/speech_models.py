"""A Conformer of a few thousand weights, and its config."""

import torch

CONFIG = {
    "model_type": "parakeet_ctc",
    "encoder_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_kernel_size": 5,
        "subsampling_factor": 4,
        "subsampling_conv_channels": 8,
        "num_mel_bins": 20,
        "layerdrop": 0.0,
        "dropout": 0.0,
        "activation_dropout": 0.0,
        "attention_dropout": 0.0,
    },
}


def tiny_conformer(seed=0, symbols=5):
    """The model with transformers' own start."""
    from transformers import ParakeetCTCConfig, ParakeetForCTC

    config = ParakeetCTCConfig(
        encoder_config=CONFIG["encoder_config"], vocab_size=symbols, pad_token_id=symbols - 1
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ParakeetForCTC(config)
