"""How much each layer of a decoder does: the diagnostics of the Curse of Depth.

Four measures (Sun et al., arXiv:2502.05795; Gromov et al., arXiv:2403.17887):

- variance of each layer's output on the residual stream, before the final norm;
- norm of the loss's gradient in each layer, over its matrices alone and over all its parameters;
- angular distance d(l, n) = arccos(cos(x_l, x_{l+n})) / pi between the inputs of two layers at the
  last token, a mean over windows: 0 the same direction, 0.5 unrelated, 1 opposite. x_L is the last
  layer's output;
- how much the loss rises when a layer is left out, paired by window.

Everything but the last needs one forward and one backward pass a window; leaving layer l out runs
only the layers behind it, so that all L together cost L / 2 forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from compress.checkpoints.anatomy import read_anatomy
from compress.errors import RequestError, RunError
from compress.evaluation.perplexity import require_causal
from compress.progress import Progress, silent


@dataclass(frozen=True)
class LayerDepth:
    """What one layer does.

    Attributes:
        module: its name.
        variance: of its output, over features and tokens.
        gradient_2d: norm of the mean loss's gradient over its parameters with two or more
            dimensions.
        gradient: the same over all its parameters.
        distance: d(l, 1), between its input and its output.
        loss_increase: mean loss in nats without it, minus that with it.
        stderr: of loss_increase, over windows; None for one window.
    """

    module: str
    variance: float
    gradient_2d: float
    gradient: float
    distance: float
    loss_increase: float
    stderr: float | None


@dataclass(frozen=True)
class Depth:
    """What `measure_depth` found.

    Attributes:
        layers: in order.
        input_variance: variance of the first layer's input.
        angular: [L + 1, L + 1] float64, symmetric: d between the inputs of layers i and j, the last
            being the last layer's output.
        loss: mean loss in nats of the whole model.
        windows, tokens: what it rests on.
    """

    layers: tuple[LayerDepth, ...]
    input_variance: float
    angular: Tensor
    loss: float
    windows: int
    tokens: int

    def distances(self) -> list[list[float]]:
        """Return d(l, n) as a list for each l from 0 of n = 1, 2, … L - l."""
        size = len(self.angular)
        return [self.angular[i, i + 1 :].tolist() for i in range(size - 1)]

    def as_dict(self) -> dict[str, Any]:
        """Plain values; what was not measured is absent."""
        rows = []
        for number, layer in enumerate(self.layers):
            row = {"layer": number, **vars(layer)}
            if layer.stderr is None:
                del row["stderr"]
            rows.append(row)
        return {
            "rows": rows,
            "input_variance": self.input_variance,
            "angular_distance": self.distances(),
            "loss": self.loss,
            "windows": self.windows,
            "tokens": self.tokens,
        }


def angular_distances(states: Tensor) -> Tensor:
    """Return the angles between vectors, divided by pi: 0 … 1, float64 [..., N, N].

    Computed as 2 atan2(|u - v|, |u + v|) of unit vectors, which is exact where arccos of a rounded
    cosine is not (equal vectors give 0, not 1e-4, and never NaN). A zero vector has distance 0.5
    to every other.

    Args:
        states: [..., N, D].
    """
    units = functional.normalize(states.double(), dim=-1, eps=1e-300)
    minus = (units[..., :, None, :] - units[..., None, :, :]).norm(dim=-1)
    plus = (units[..., :, None, :] + units[..., None, :, :]).norm(dim=-1)
    return 2 * torch.atan2(minus, plus) / math.pi


class _Tap:
    """Keeps the residual stream around every layer of a pass, and can run a part of it.

    Attributes:
        states: L + 1 tensors [B, T, D]: the layers' inputs and the last one's output.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = list(layers)
        self.states: list[Tensor] = []
        self._last: Any = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep the states of the forward pass inside."""
        self.states = []
        with ExitStack() as stack:
            for layer in self.layers:
                hook = layer.register_forward_pre_hook(self._before, with_kwargs=True)
                stack.callback(hook.remove)
            hook = self.layers[-1].register_forward_hook(self._after)
            stack.callback(hook.remove)
            yield

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.states.append((args[0] if args else kwargs["hidden_states"]).detach())

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        self._last = output
        self.states.append((output[0] if isinstance(output, tuple) else output).detach())

    @contextmanager
    def without(self, number: int) -> Iterator[None]:
        """Let a forward pass skip layer `number`, and spare it the layers before.

        They return at once; in the place of the layer its own input of the pass listened to.
        """
        with ExitStack() as stack:
            for layer in self.layers[: number + 1]:
                layer.forward = self._stub(self.states[number])
                stack.callback(delattr, layer, "forward")
            yield

    def _stub(self, state: Tensor) -> Any:
        output = (state, *self._last[1:]) if isinstance(self._last, tuple) else state
        return lambda *args, **kwargs: output


def measure_depth(
    model: Any, batches: Sequence[dict[str, Tensor]], progress: Progress = silent
) -> Depth:
    """Measure every layer of a decoder-only language model.

    Args:
        model: in float32, in evaluation mode; its gradients are lost.
        batches: {"input_ids": int64 [B, T]}, with "attention_mask" where rows are padded: padding
            counts nowhere.
        progress: hears of every batch.

    Raises:
        RequestError: no causal language model, or one of several stacks of layers.
        RunError: a loss isn't finite.
    """
    require_causal(model)
    layers = _layers(model)
    tap, sums = _Tap(list(layers.values())), _Sums(len(layers), model.device)
    total = sum(int(_targets(batch)[1].sum()) for batch in batches)
    model.zero_grad(set_to_none=True)
    for done, batch in enumerate(batches):
        progress("depth", done, len(batches))
        here = {key: value.to(model.device) for key, value in batch.items()}
        targets, scored = _targets(here)
        with tap.listening(), torch.enable_grad():
            losses = _losses(model, here, targets, scored)
            (losses * scored).sum().div(total).backward()
        if len(tap.states) != len(layers) + 1:
            raise RequestError(
                f"`{type(model).__name__}` runs its {len(layers)} layers {len(tap.states) - 1} "
                "times in one pass",
                "--depth is for models that run each layer once",
            )
        whole = _means(losses.detach(), scored)
        without = []
        for number in range(len(layers)):
            with tap.without(number), torch.no_grad():
                without.append(_means(_losses(model, here, targets, scored), scored))
        sums.add(tap.states, here.get("attention_mask"), whole, torch.stack(without))
    progress("depth", len(batches), len(batches))
    depth = sums.result(layers, total)
    model.zero_grad(set_to_none=True)
    return depth


def _layers(model: Any) -> dict[str, nn.Module]:
    anatomy = read_anatomy(model)
    if len(anatomy.stacks) != 1:
        raise RequestError(
            f"`{type(model).__name__}` has {len(anatomy.stacks)} stacks of layers",
            "--depth is for decoder-only language models, which have one",
        )
    return {block.name: model.get_submodule(block.name) for block in anatomy.stacks[0]}


def _targets(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the tokens to be predicted [B, T - 1] and whether each counts, bool likewise."""
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    if mask is None:
        return ids[:, 1:], torch.ones_like(ids[:, 1:], dtype=torch.bool)
    return ids[:, 1:], mask[:, 1:].bool() & mask[:, :-1].bool()


def _losses(model: Any, batch: dict[str, Tensor], targets: Tensor, scored: Tensor) -> Tensor:
    """Return the loss of every token [B, T - 1], 0 where it doesn't count."""
    logits = model(**batch, use_cache=False).logits[:, :-1].float()
    losses = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return losses.where(scored, 0.0)


def _means(losses: Tensor, scored: Tensor) -> Tensor:
    """Return each row's mean loss, float64 [B]."""
    return losses.double().sum(1) / scored.sum(1)


class _Sums:
    """Running sums over batches, on the device until the end."""

    def __init__(self, layers: int, device: torch.device) -> None:
        self.moments = torch.zeros(layers + 1, 2, dtype=torch.float64, device=device)
        self.angular = torch.zeros(layers + 1, layers + 1, dtype=torch.float64, device=device)
        self.elements = 0
        self.windows = 0
        self.whole: list[Tensor] = []
        self.without: list[Tensor] = []

    def add(
        self, states: list[Tensor], mask: Tensor | None, whole: Tensor, without: Tensor
    ) -> None:
        """Add a batch: states [B, T, D] each, mask [B, T], losses [B] and [L, B]."""
        rows, length, width = states[0].shape
        real = torch.ones(rows, length, device=states[0].device) if mask is None else mask
        last = length - 1 - real.flip(1).long().argmax(1)
        own = real[..., None].double()
        for number, state in enumerate(states):
            kept = state.double() * own
            self.moments[number] += torch.stack([kept.sum(), kept.square().sum()])
        self.elements += int(real.sum()) * width
        index = torch.arange(rows, device=last.device)
        ends = torch.stack([state[index, last] for state in states], dim=1)
        self.angular += angular_distances(ends).sum(0)
        self.windows += rows
        self.whole.append(whole.cpu())
        self.without.append(without.cpu())

    def result(self, layers: dict[str, nn.Module], tokens: int) -> Depth:
        """Divide, and read the gradients off the layers."""
        whole, without = torch.cat(self.whole), torch.cat(self.without, dim=1)
        if not bool(torch.isfinite(whole).all() and torch.isfinite(without).all()):
            raise RunError(
                "the loss of a window is not finite",
                "the model's weights are broken, or it overflows without a layer",
            )
        means = self.moments / self.elements
        variances = (means[:, 1] - means[:, 0].square()).tolist()
        angular = (self.angular / self.windows).cpu()
        changes = without - whole
        rows = [
            LayerDepth(
                module=name,
                variance=variances[number + 1],
                gradient_2d=_gradient(layer, least=2),
                gradient=_gradient(layer, least=0),
                distance=float(angular[number, number + 1]),
                loss_increase=float(changes[number].mean()),
                stderr=_stderr(changes[number]),
            )
            for number, (name, layer) in enumerate(layers.items())
        ]
        loss = float(whole.mean())
        return Depth(tuple(rows), variances[0], angular, loss, self.windows, tokens)


def _gradient(layer: nn.Module, least: int) -> float:
    """Return the norm of the gradient over parameters with at least so many dimensions."""
    found = [p.grad for p in layer.parameters() if p.grad is not None and p.dim() >= least]
    if not found:
        return 0.0
    return float(torch.stack([g.double().square().sum() for g in found]).sum().sqrt())


def _stderr(values: Tensor) -> float | None:
    if len(values) < 2:
        return None
    return float(values.std()) / math.sqrt(len(values))


def check_files(**files: str | Path | None) -> None:
    """Refuse files to be written whose directory isn't there.

    Raises:
        RequestError: naming the option.
    """
    for name, path in files.items():
        if path is not None and not Path(path).absolute().parent.is_dir():
            parent = Path(path).absolute().parent
            raise RequestError(f"`--{name} {path}`: there is no directory `{parent}`")
        if path is not None and Path(path).is_dir():
            raise RequestError(f"`--{name} {path}` is a directory, a file is needed")
