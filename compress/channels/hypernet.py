"""PASS's own parts: the visual prompt, its encoder, and the recurrent hyper-network.

    h_0 = g(V * B)                         prompt encoder: three convolutions, mean, linear
    (h_i, c_i) = LSTM(u_i, h_{i-1}, c_{i-1})     u_i: statistics of group i's weights
    s_i = base_i + A_i h_i + b_i           one linear map a group: scores of its units

The unit is the coupled group, not the layer: what writes one residual stream has one s_i. Groups
come in the order in which they are first written.

Source: PASS, arXiv:2407.17412, abstract and public summaries, which tell the parts but not their
sizes; sizes here, and the statistics but mean |W|, are our choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.channels.groups import Group, unit_rows
from compress.data.images.prompting import SavedPrompt, apply_prompt, frame, inner_side
from compress.errors import RequestError

STATISTICS = ("mean", "quantiles", "none")
MAPPERS = ("group", "shared")
STEPS = ("identity", "sigmoid")
QUANTILES = 32


class Prompt(nn.Module):
    """A learned frame on the image, zero at first.

    Args:
        side: of the images with the prompt, in pixels.
        width: of the frame; half the side or more covers everything.
        place: "pad" onto the image's edges, or "expand" around the shrunk image.
    """

    mask: Tensor

    def __init__(self, side: int, width: int, place: str = "pad") -> None:
        super().__init__()
        self.width, self.place = width, place
        self.values = nn.Parameter(torch.zeros(3, side, side))
        self.register_buffer("mask", frame(side, width), persistent=False)

    def forward(self, unit: Tensor) -> Tensor:
        """Put the prompt on images in [0, 1], before normalisation."""
        inner = inner_side(self.values.shape[-1], self.width, self.place)
        return apply_prompt(unit, self.values, self.mask, inner)

    def framed(self) -> Tensor:
        """The prompt as it acts, [3, S, S]."""
        return self.values * self.mask

    def saved(self, needed: bool) -> SavedPrompt:
        """A copy to keep; see SavedPrompt."""
        values = self.framed().detach().cpu().clone()
        return SavedPrompt(values, self.width, self.place, needed)

    @torch.no_grad()
    def restore(self, saved: SavedPrompt) -> None:
        """Take the values of a saved prompt."""
        self.values.copy_(saved.values.to(self.values))


def make_prompt(place: str, side: int, width: int | None) -> Prompt | None:
    """Make a prompt for images of `side` pixels; None for "none".

    Raises:
        RequestError: a frame wider than the image allows.
    """
    if place == "none":
        return None
    own = prompt_width(side) if width is None else width
    most = side // 2 if place == "pad" else side // 2 - 1  # something of the image must be left
    if own > most:
        raise RequestError(
            f"`--prompt-size {own}` is too wide for images of {side} pixels", f"use {most} or less"
        )
    return Prompt(side, own, place)


def prompt_width(side: int) -> int:
    """Return the frame's width for images of `side` pixels: 16 of 224, in proportion."""
    return max(round(side / 14), 1)


class PromptEncoder(nn.Module):
    """g: [3, S, S] -> [H]; three 3 x 3 convolutions of stride 2, the mean over places, a linear."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
        )  # fmt: skip
        self.linear = nn.Linear(64, hidden)

    def forward(self, prompt: Tensor) -> Tensor:
        """Encode a prompt."""
        return self.linear(self.layers(prompt[None]).mean((2, 3)))[0]


class HyperNetwork(nn.Module):
    """Scores of every unit of every group, from the prompt and the weights' statistics.

    Args:
        groups: in order.
        statistics: float32 [G, D], what is read at each step; see `group_statistics`.
        hidden: H.
        prompted: whether an encoded prompt starts the recurrence; else a learned vector does.
        recurrent: an LSTM over the groups; else each group is looked at alone (an ablation).
        base: scores to which the maps add, for each group [width]: then the maps begin at zero,
            and the first keep set is exactly that of the base.
        units: with the "shared" mapper, features [width, F] of each group's units: one map serves
            all groups, and knows no width.
    """

    statistics: Tensor

    def __init__(
        self,
        groups: Sequence[Group],
        statistics: Tensor,
        *,
        hidden: int = 64,
        prompted: bool = True,
        recurrent: bool = True,
        base: Sequence[Tensor] | None = None,
        units: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.hidden, self.recurrent = hidden, recurrent
        self.register_buffer("statistics", statistics.float(), persistent=False)
        self._base = None if base is None else [part.detach().float() for part in base]
        self._units = None if units is None else [part.float() for part in units]
        self.encoder = PromptEncoder(hidden) if prompted else None
        self.start = None if prompted else nn.Parameter(torch.zeros(hidden))
        inputs = statistics.shape[1]
        self.cell = nn.LSTM(inputs, hidden) if recurrent else nn.Linear(inputs, hidden)
        self.maps: nn.Module
        if self._units is None:
            self.maps = nn.ModuleList(nn.Linear(hidden, group.width) for group in groups)
            last = list(self.maps)
        else:
            features = self._units[0].shape[1]
            self.maps = nn.Sequential(
                nn.Linear(hidden + features, hidden), nn.ReLU(), nn.Linear(hidden, 1)
            )
            last = [self.maps[2]]
        if base is not None:
            for layer in last:
                nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, prompt: Tensor | None = None) -> list[Tensor]:
        """Return for each group the scores [width].

        Args:
            prompt: [3, S, S] as it acts; None without one.
        """
        states = self._states(prompt)
        if self._units is None:
            maps = list(self.maps.children())
            scores = [layer(state) for layer, state in zip(maps, states, strict=True)]
        else:
            scores = [
                self.maps(torch.cat([state.expand(len(units), -1), units.to(state.device)], 1))[
                    :, 0
                ]
                for state, units in zip(states, self._units, strict=True)
            ]
        if self._base is None:
            return scores
        return [s + b.to(s.device) for s, b in zip(scores, self._base, strict=True)]

    def _states(self, prompt: Tensor | None) -> Tensor:
        """h_1 … h_G, [G, H]."""
        first = self.start if self.encoder is None else self.encoder(prompt)
        assert first is not None
        if not self.recurrent:
            return torch.tanh(self.cell(self.statistics) + first)
        state = (first[None, None], torch.zeros_like(first)[None, None])
        return self.cell(self.statistics[:, None], state)[0][:, 0]


def unit_statistics(model: nn.Module, group: Group) -> Tensor:
    """Return a group's statistics by unit, float32 [width, 5], each relative to its group's mean.

    mean |W|, std W, ||W||_2, |gamma| and beta of the norm behind, means over the group's writers;
    0 where a group has none of it. beta is divided by the mean of |beta|.
    """
    with torch.no_grad():
        rows = [unit_rows(model, member).float() for member in group.writers]
        if not rows:  # only norms and the like touch it: nothing to read
            return torch.zeros(group.width, 5)
        columns = [
            _mean([row.abs().mean(1) for row in rows]),
            _mean([row.std(1, unbiased=False) for row in rows]),
            _mean([row.norm(dim=1) for row in rows]),
        ]
        for name in ("weight", "bias"):
            parts = [
                unit_rows(model, member, name).float().mean(1)
                for member in group.norms
                if getattr(model.get_submodule(member.module), name, None) is not None
            ]
            blank = torch.zeros(group.width, device=rows[0].device)
            columns.append(_mean([p.abs() if name == "weight" else p for p in parts] or [blank]))
        return torch.stack([_relative(column) for column in columns], 1).cpu()


def group_statistics(model: nn.Module, groups: Sequence[Group], kind: str = "mean") -> Tensor:
    """Return u, float32 [G, D]: what the hyper-network reads at each step.

    Args:
        model: the dense network.
        groups: in order.
        kind: "mean": mean |W| by unit, relative to the group's mean, zero padded to the widest
            group; "quantiles": 32 quantiles of each of the five unit statistics, so that D is the
            same for every network; "none": zeros (an ablation).

    Raises:
        RequestError: an unknown kind.
    """
    if kind not in STATISTICS:
        raise RequestError(f"`--stats {kind}` isn't known", f"All: {', '.join(STATISTICS)}.")
    if kind == "none":
        return torch.zeros(len(groups), 1)
    found = [unit_statistics(model, group) for group in groups]
    if kind == "quantiles":
        places = torch.linspace(0, 1, QUANTILES)
        return torch.stack([torch.quantile(own, places, 0).T.reshape(-1) for own in found])
    wide = max(group.width for group in groups)
    padded = torch.zeros(len(groups), wide)
    for row, own in zip(padded, found, strict=True):
        row[: len(own)] = own[:, 0]
    return padded


def straight_through(scores: Sequence[Tensor], keep: Sequence[Tensor], kind: str) -> list[Tensor]:
    """Return masks that are hard forward and pass gradients to every score, kept or not.

    m = keep + s - stop(s) ("identity"), or keep + sigmoid(s) - stop(sigmoid(s)).

    Args:
        scores: for each group float [width].
        keep: for each group bool [width].
        kind: one of STEPS.
    """
    soft = [torch.sigmoid(s) if kind == "sigmoid" else s for s in scores]
    return [k.to(s.dtype) + (s - s.detach()) for k, s in zip(keep, soft, strict=True)]


def _mean(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).mean(0)


def _relative(column: Tensor) -> Tensor:
    """Divide by the mean size and centre a positive column at 0; constant columns give 0."""
    size = column.abs().mean()
    if float(size) == 0:
        return torch.zeros_like(column)
    scaled = column / size
    return scaled - 1 if bool((column >= 0).all()) else scaled
