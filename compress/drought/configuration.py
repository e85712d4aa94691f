"""The shape of a drought estimator, as its config.json holds it."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

MODEL_TYPE = "side"


class SideConfig(PretrainedConfig):
    """Sizes and choices of a SideModel.

    Args:
        text_width: of a text's vector.
        physical: names of the series' inputs, in order.
        regions: names of the places, in order; number 0 is any other place.
        horizons: in weeks; 0 is the nowcast.
        categories: of impact; none where impacts aren't estimated.
        context: weeks of a window.
        hidden_size: of both recurrent nets.
        attention_size: of the pooling over a week's texts.
        region_width: of a place's vector.
        dropout: share of text inputs and of states that is dropped in training.
        use_text, use_physical, use_cross: parts that can be left out.
        tasks: severity, impact, or both.
        impact_loss: bce or poisson.
        target: dsci or worst-category.
        encoder: "tfidf" or "encoder", the directory beside config.json.
        simulated: whether it was trained on made-up data.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        text_width: int = 64,
        physical: tuple[str, ...] | list[str] = ("dsci",),
        regions: tuple[str, ...] | list[str] = (),
        horizons: tuple[int, ...] | list[int] = (0, 1, 4, 8, 13),
        categories: tuple[str, ...] | list[str] = (),
        context: int = 26,
        hidden_size: int = 64,
        attention_size: int = 32,
        region_width: int = 8,
        dropout: float = 0.1,
        use_text: bool = True,
        use_physical: bool = True,
        use_cross: bool = True,
        tasks: tuple[str, ...] | list[str] = ("severity", "impact"),
        impact_loss: str = "bce",
        target: str = "dsci",
        encoder: str = "tfidf",
        simulated: bool = False,
        **rest: Any,
    ) -> None:
        self.text_width = text_width
        self.physical = list(physical)
        self.regions = list(regions)
        self.horizons = list(horizons)
        self.categories = list(categories)
        self.context = context
        self.hidden_size = hidden_size
        self.attention_size = attention_size
        self.region_width = region_width
        self.dropout = dropout
        self.use_text = use_text
        self.use_physical = use_physical
        self.use_cross = use_cross
        self.tasks = list(tasks)
        self.impact_loss = impact_loss
        self.target = target
        self.encoder = encoder
        self.simulated = simulated
        super().__init__(**rest)
