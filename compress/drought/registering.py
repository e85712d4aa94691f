"""Makes the Auto classes know the estimator, as soon as transformers is imported."""

from __future__ import annotations


def register_config() -> None:
    """Teach AutoConfig; repeatable."""
    from transformers import AutoConfig

    from compress.drought.configuration import MODEL_TYPE, SideConfig

    AutoConfig.register(MODEL_TYPE, SideConfig, exist_ok=True)


def register_model() -> None:
    """Teach AutoConfig and AutoModel; repeatable."""
    from transformers import AutoModel

    from compress.drought.configuration import SideConfig
    from compress.drought.modeling import SideModel

    register_config()
    AutoModel.register(SideConfig, SideModel, exist_ok=True)
