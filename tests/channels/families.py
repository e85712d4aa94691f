"""Tiny random networks of every family that `pass-prune` cuts."""

import copy

import torch
from torch import nn
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    MobileNetV1Config,
    MobileNetV1ForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "num_labels": 5}
_REGNET = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [1, 2],
    "groups_width": 4,
    "num_labels": 5,
}
_CONVNEXT = {"hidden_sizes": [16, 24], "depths": [2, 1], "num_stages": 2, "num_labels": 5}
_MOBILE = {"depth_multiplier": 0.25, "num_labels": 5, "min_depth": 4, "depth_divisible_by": 4}

FAMILIES = {
    "resnet-basic": (ResNetForImageClassification, ResNetConfig(**_RESNET, layer_type="basic")),
    "resnet-bottleneck": (
        ResNetForImageClassification,
        ResNetConfig(**{**_RESNET, "hidden_sizes": [32, 64]}, layer_type="bottleneck"),
    ),
    "regnet-x": (RegNetForImageClassification, RegNetConfig(**_REGNET, layer_type="x")),
    "regnet-y": (RegNetForImageClassification, RegNetConfig(**_REGNET, layer_type="y")),
    "mobilenet-v1": (
        MobileNetV1ForImageClassification,
        MobileNetV1Config(depth_multiplier=0.25, num_labels=5),
    ),
    "mobilenet-v2": (MobileNetV2ForImageClassification, MobileNetV2Config(**_MOBILE)),
    "convnext": (ConvNextForImageClassification, ConvNextConfig(**_CONVNEXT)),
    "convnextv2": (ConvNextV2ForImageClassification, ConvNextV2Config(**_CONVNEXT)),
    "vit": (ViTForImageClassification, ViTConfig(**_VIT)),
    "deit": (DeiTForImageClassification, DeiTConfig(**_VIT)),
    "beit": (
        BeitForImageClassification,
        BeitConfig(**_VIT, use_relative_position_bias=True),
    ),
    "swin": (
        SwinForImageClassification,
        SwinConfig(
            image_size=32,
            patch_size=2,
            embed_dim=16,
            depths=[2, 1],
            num_heads=[2, 4],
            window_size=4,
            num_labels=5,
        ),
    ),
    "dinov2": (
        Dinov2ForImageClassification,
        Dinov2Config(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            num_labels=5,
        ),
    ),
}


def build(name, seed=0, dtype=torch.float64):
    """A network in eval mode with weights, norms and running statistics that say something."""
    kind, config = FAMILIES[name]
    torch.manual_seed(seed)
    model = kind(copy.deepcopy(config)).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)

    def draw(like, low, high):
        values = torch.rand(like.shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * values).to(like.dtype)

    with torch.no_grad():
        for module in model.modules():
            own = dict(module.named_parameters(recurse=False))
            for key, parameter in own.items():
                if isinstance(module, (nn.Conv2d, nn.Linear)) and key == "weight":
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.copy_(noise * (1.5 / parameter[0].numel()) ** 0.5)
                else:
                    parameter.copy_(draw(parameter, -1.0, 1.0))
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(draw(module.running_mean, -0.5, 0.5))
                module.running_var.copy_(draw(module.running_var, 0.5, 2.0))
                module.weight.copy_(draw(module.weight, 0.5, 1.5))
    return model


def images(size=32, count=2, dtype=torch.float64, seed=0):
    """Pixel values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)
