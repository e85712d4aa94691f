"""The estimator: texts pooled by week, two recurrent nets, causal attention between them, heads.

    e_t  = sum_j a_j z_j,   a_j = softmax_j(w' tanh(U z_j)) over the texts of week t
    s    = GRU_soc([e_t; log(1 + count); impacts known so far; place])
    p    = GRU_phy([series of week t; place])
    s'   = LN(s + CA(s <- p)),   p' = LN(p + CA(p <- s))        one causal head each, both at once
    severity  y_{t+h} = y_t + scale_h * v_h' p'_t               v_h starts at zero: persistence
    impact    logit_{t+h,c} = u_{h,c}' [s'_t; p'_t] + prior_c   u starts at zero: the train prior

Source: the modules are those that the abstract of SIDE (arXiv:2412.12575) names; its body wasn't
at hand, so sizes, losses and this arrangement are ours.

Letters: N texts, V weeks of a table, B windows, L weeks of a window, H horizons, C categories,
D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from compress.drought.configuration import SideConfig


@dataclass
class SideOutput(ModelOutput):
    """What the model says.

    Attributes:
        change: severity at each horizon minus the newest known, in training deviations of that
            change, [B, H].
        impact: logits (bce) or log rates (poisson), [B, H, C]; None without categories.
    """

    change: Tensor | None = None
    impact: Tensor | None = None


class TextPool(nn.Module):
    """Attention over the texts of each week; a learned vector stands for a week without texts."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, size)
        self.score = nn.Linear(size, 1, bias=False)
        self.nothing = nn.Parameter(torch.zeros(width))

    def forward(self, vectors: Tensor, week: Tensor, weeks: int) -> Tensor:
        """Pool.

        Args:
            vectors: [N, width].
            week: number of each text's week, int64 [N].
            weeks: how many there are, V.

        Returns:
            [V, width].
        """
        pooled = self.nothing.expand(weeks, -1)
        if len(vectors) == 0:
            return pooled
        score = self.score(torch.tanh(self.project(vectors))).squeeze(-1)
        top = score.new_full((weeks,), float("-inf"))
        top = top.scatter_reduce(0, week, score.detach(), "amax")
        weight = torch.exp(score - top[week])
        total = weight.new_zeros(weeks).index_add(0, week, weight)
        share = weight / total[week]
        summed = vectors.new_zeros(weeks, vectors.shape[1])
        summed = summed.index_add(0, week, share[:, None] * vectors)
        return torch.where((total > 0)[:, None], summed, pooled)


class CausalCrossAttention(nn.Module):
    """One head of attention from one sequence to another, never to later weeks.

    Scores get a learned bias by the weeks between, minus their number at the start: a state already
    sums up the weeks before it, and evenly spread attention would drown the newest of them.
    """

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.distance = nn.Parameter(-torch.arange(length, dtype=torch.float32))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, states: Tensor, others: Tensor) -> Tensor:
        """Look from `states` at `others`, both [B, L, D]; week l sees weeks up to l."""
        q, k, v = self.q_proj(states), self.k_proj(others), self.v_proj(others)
        week = torch.arange(q.shape[1], device=q.device)
        back = week[:, None] - week
        score = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + self.distance[back.clamp_min(0)]
        return self.o_proj(score.masked_fill(back < 0, float("-inf")).softmax(dim=-1) @ v)


class Dynamics(nn.Module):
    """Both recurrent nets and what passes between them."""

    def __init__(self, config: SideConfig) -> None:
        super().__init__()
        width, place = config.hidden_size, config.region_width
        social = config.text_width + 1 + len(config.categories)
        self.pool = TextPool(config.text_width, config.attention_size)
        # a flag tells which windows are those of the nowcast, whose numbers end a week earlier
        self.social = nn.GRU(social + place + 1, width, batch_first=True)
        self.physical = nn.GRU(len(config.physical) + place + 1, width, batch_first=True)
        self.to_physical = CausalCrossAttention(width, config.context)
        self.to_social = CausalCrossAttention(width, config.context)
        self.social_norm = nn.LayerNorm(width)
        self.physical_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.cross = config.use_cross

    def forward(self, social: Tensor, physical: Tensor) -> tuple[Tensor, Tensor]:
        """Run over windows [B, L, inputs]; returns s', p' [B, L, D]."""
        s = self.dropout(self.social(social)[0])
        p = self.dropout(self.physical(physical)[0])
        if not self.cross:
            return self.social_norm(s), self.physical_norm(p)
        seen_s, seen_p = self.to_social(s, p), self.to_physical(p, s)
        return self.social_norm(s + seen_s), self.physical_norm(p + seen_p)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, so that a new model says what needs no model."""


class Heads(nn.Module):
    """Severity and impact at every horizon."""

    def __init__(self, config: SideConfig) -> None:
        super().__init__()
        width, horizons = config.hidden_size, len(config.horizons)
        self.severity = ZeroLinear(width, horizons, bias=False)
        kinds = len(config.categories)
        self.impact = ZeroLinear(2 * width, horizons * kinds) if kinds else None

    def forward(self, s: Tensor, p: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the last week's states [B, D]: change [B, H], impact [B, H * C] or None."""
        together = torch.cat([s, p], dim=-1)
        return self.severity(p), None if self.impact is None else self.impact(together)


class SideModel(PreTrainedModel):
    """A socially informed drought estimator; `from_pretrained` opens what train-side wrote."""

    config_class = SideConfig
    config: SideConfig
    base_model_prefix = "side"
    main_input_name = "physical"

    def __init__(self, config: SideConfig) -> None:
        super().__init__(config)
        # number 0 is a place that wasn't trained on: its vector stays zero
        self.region = nn.Embedding(len(config.regions) + 1, config.region_width, padding_idx=0)
        self.parts = nn.ModuleList([Dynamics(config), Heads(config)])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ZeroLinear):
            module.weight.zero_()
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, TextPool):
            module.nothing.zero_()
        elif isinstance(module, CausalCrossAttention):
            module.distance.copy_(-torch.arange(len(module.distance), dtype=torch.float32))
        elif isinstance(module, nn.Linear | nn.GRU | nn.LayerNorm | nn.Embedding):
            module.reset_parameters()

    @torch.no_grad()
    def set_prior(self, prior: Tensor) -> None:
        """Let the impact head start at the training prior.

        Args:
            prior: log odds, or log rates, by category [C].
        """
        head = self.heads.impact
        if head is not None:
            head.bias.copy_(prior.repeat(len(self.config.horizons)))

    @property
    def dynamics(self) -> Dynamics:
        """The recurrent part."""
        found: Any = self.parts[0]
        return found

    @property
    def heads(self) -> Heads:
        """The linear part."""
        found: Any = self.parts[1]
        return found

    def states(
        self,
        physical: Tensor,
        social: Tensor,
        text_vectors: Tensor,
        text_week: Tensor,
        region: Tensor,
        windows: Tensor,
        delay: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return s', p' [B, L, D] of windows; the arguments are those of `forward`."""
        dynamics, config = self.dynamics, self.config
        numbers = windows - delay[:, None]
        pooled = dynamics.pool(text_vectors, text_week, len(physical))[windows]
        counts, impacts = social[:, :1][windows], social[:, 1:][numbers]
        if not config.use_text:
            pooled, counts = torch.zeros_like(pooled), torch.zeros_like(counts)
        series = physical[numbers]
        if not config.use_physical:
            series = torch.zeros_like(series)
        place = self.region(region)[:, None].expand(-1, windows.shape[1], -1)
        flag = delay[:, None, None].to(place.dtype).expand(-1, windows.shape[1], 1)
        soc = torch.cat([dynamics.dropout(pooled), counts, impacts, place, flag], dim=-1)
        return dynamics(soc, torch.cat([series, place, flag], dim=-1))

    def forward(
        self,
        physical: Tensor,
        social: Tensor,
        text_vectors: Tensor,
        text_week: Tensor,
        region: Tensor,
        windows: Tensor,
        delay: Tensor | None = None,
        **_: Any,
    ) -> SideOutput:
        """Estimate severity and impact from the last week of each window.

        Args:
            physical: standardised numbers of the series by week, [V, F].
            social: log(1 + texts) and the known impacts by week, standardised, [V, 1 + C].
            text_vectors: [N, text_width].
            text_week: number of each text's week, int64 [N].
            region: number of each window's place, from 1; 0 is any other, int64 [B].
            windows: numbers of the weeks of each window, in order, int64 [B, L].
            delay: 1 for a nowcast, whose numbers end a week before its texts; the window's first
                number must then be at least 1. Zeros unless given, int64 [B].
        """
        late = torch.zeros_like(region) if delay is None else delay
        s, p = self.states(physical, social, text_vectors, text_week, region, windows, late)
        change, impact = self.heads(s[:, -1], p[:, -1])
        if impact is not None:
            impact = impact.view(len(windows), len(self.config.horizons), -1)
        return SideOutput(change=change, impact=impact)
