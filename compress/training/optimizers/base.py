"""What SPAM and Stable-SPAM share: options, state that survives a reload, lists of local tensors.

State is float32 at least, whatever the parameters are: a bfloat16 second moment times 0.999 rounds
back to itself and never decays. Parameters in bfloat16 or float16 get a float32 master copy, kept
in their state, since an update smaller than half a last place would be lost in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from compress.errors import RequestError

BIASES = ("restart", "legacy")
_EXTRAS = ("_engine", "counting")  # ours, beside what torch copies and pickles of an optimizer
_HOST = ("step",)  # state that stays on the CPU, as in torch's own optimizers


class BadOption(RequestError, ValueError):
    """An option of an optimizer that can't be: a ValueError, as torch's optimizers raise."""


def check_common(lr: Any, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    """Refuse a learning rate, betas, eps or weight decay that can't be.

    Raises:
        BadOption: naming the option, the value and the range.
    """
    if not float(lr) > 0 or not math.isfinite(float(lr)):
        raise BadOption(f"lr is {float(lr):g}, it must be above 0")
    for name, beta in zip(("beta1", "beta2"), betas):
        check_range(name, beta, 0.0, 1.0, "[0, 1)", right_open=True)
    check_range("eps", eps, 0.0, math.inf, "at least 0")
    check_range("weight_decay", weight_decay, 0.0, math.inf, "at least 0")


def check_range(
    name: str, value: float, low: float, high: float, text: str, *, right_open: bool = False
) -> None:
    """Refuse a number outside [low, high], or [low, high) with `right_open`."""
    fits = low <= value < high if right_open else low <= value <= high
    if not fits:
        raise BadOption(f"{name} is {value:g}, it must be in {text}".replace("in at", "at"))


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that isn't one of the choices."""
    if value not in choices:
        raise BadOption(f"{name} is `{value}`, it must be {' or '.join(choices)}")


def interval(value: float | None, name: str) -> int:
    """Return a number of steps between resets; 0, None and infinity are never, 0."""
    if value is None or value == math.inf:
        return 0
    if value != int(value) or value < 0:
        raise BadOption(f"{name} is {value:g}, it must be a whole number, 0 for never")
    return int(value)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: its memory, without autograd's marks."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    return tensor.detach() if tensor.requires_grad else tensor


def state_dtype(parameter: Tensor) -> torch.dtype:
    """float32, or float64 for float64 parameters."""
    return torch.promote_types(parameter.dtype, torch.float32)


class HealthyOptimizer(torch.optim.Optimizer):
    """An optimizer whose counters live in its groups and whose state reloads as it was saved.

    Each group has `calls`, the number of steps taken. Subclasses define `_advance` and `_check`.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, its options checked.

        Raises:
            BadOption: an option out of its range; the group is not added.
        """
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except BadOption:
            self.param_groups.pop()
            raise

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; gradients are read, never written.

        Args:
            closure: evaluates the model again with gradients, returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._take_step()
        return loss

    @torch.compiler.disable(recursive=True)
    @torch.no_grad()
    def _take_step(self) -> None:
        # Not traced into a caller's graph: the step compiles its own kernels, and its counters,
        # as constants of that graph, would have it compiled anew for each step.
        waiting: dict[Any, list[Any]] = {}
        for group in self.param_groups:
            group["calls"] += 1
            self._advance(group, waiting)
        self._finish(waiting)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{k: self.__dict__[k] for k in _EXTRAS}}

    def _advance(self, group: dict[str, Any], waiting: dict[Any, list[Any]]) -> None:
        """Step a group, or leave what remains to be done, by kind, for `_finish`."""
        raise NotImplementedError

    def _finish(self, waiting: dict[Any, list[Any]]) -> None:
        """Do what all groups left: tensors of several groups share the calls of a kernel."""

    def _check(self, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, each tensor in the dtype in which it was saved.

        torch's own method casts all but `step` to the parameter's dtype: moments of bfloat16
        parameters, and lists of indices, would come back bfloat16.
        """
        super().load_state_dict(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for index, parameter in zip(saved, self._parameters()):
            for name, value in state_dict["state"].get(index, {}).items():
                if torch.is_tensor(value):
                    place = "cpu" if name in _HOST else local(parameter).device
                    self.state[parameter][name] = value.detach().to(place, copy=True)

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def _with_gradient(self, group: dict[str, Any]) -> Iterator[tuple[int, Tensor]]:
        """Yield (place in the group, parameter) of those that take part in this step."""
        for place, parameter in enumerate(group["params"]):
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise RuntimeError("gradients of a sparse layout aren't supported")
            if parameter.is_complex():
                raise RuntimeError("complex parameters aren't supported")
            yield place, parameter


def zeros_like(parameter: Tensor) -> Tensor:
    """Zeros of the parameter's shape and placement, in the dtype of states."""
    return torch.zeros_like(
        parameter, dtype=state_dtype(parameter), memory_format=torch.preserve_format
    ).detach()


def master_of(parameter: Tensor) -> Tensor | None:
    """A float32 copy of a parameter in fewer bits; None where it is float32 or more already."""
    if parameter.dtype == state_dtype(parameter):
        return None
    return parameter.detach().to(state_dtype(parameter), copy=True)


def on_device(rows: list[list[float]], like: Tensor) -> Tensor:
    """Copy numbers of the host to a tensor's device without waiting for it.

    Returns:
        [len(rows), numbers], in the dtype of `like`'s state.
    """
    whole = torch.tensor(rows, dtype=state_dtype(like))
    if like.device.type == "cpu":
        return whole
    if like.device.type == "cuda":
        whole = whole.pin_memory()
    return whole.to(like.device, non_blocking=True)


def names_of(group: dict[str, Any]) -> Iterable[str] | None:
    """Names of a group's parameters, where the optimizer was made of named ones."""
    return group.get("param_names")
