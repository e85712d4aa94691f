"""Forward passes of a model that stop before each block.

Every batch runs the model's own `forward` on a thread of its own. The `forward` of each block is
replaced, on the instance, by a gate that publishes the call and waits. The scheduler, which owns
the weights, runs the block itself and hands the result back, so that encoders, masks, rotary
tables and all the glue come out right because the model's own code makes them. Never more than
one thread runs: control is passed on like a baton.

Instances are patched rather than hooked because some models call `layer.forward` (squeezebert).
Blocks run on the scheduler's thread, so its grad mode, device and OpenMP team serve them all.
"""

from __future__ import annotations

import contextvars
import copy
import inspect
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

_here = threading.local()


class Call(NamedTuple):
    """A block's call as the model makes it."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: contextvars.Context

    def rehearsal(self) -> Call:
        """Return a call that leaves the real one as it is: for a run whose output is thrown away.

        Only caches of keys and values remember a run; some families (xlm) make one regardless.
        """
        return self._replace(
            args=tuple(_unshared(value) for value in self.args),
            kwargs={key: _unshared(value) for key, value in self.kwargs.items()},
        )


class _Cancelled(BaseException):
    """Unwinds the thread of a forward that nobody needs any more."""


class Gates:
    """Replaces the `forward` of modules by gates while the context is open.

    Outside a `Forward` (the scheduler's own thread) a gate is not felt.

    Args:
        model: the model.
        stops: modules at which forwards stop, by name.
    """

    def __init__(self, model: nn.Module, stops: Iterable[str]) -> None:
        self._modules = {name: model.get_submodule(name) for name in stops}
        self._original: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> Gates:
        for name, module in self._modules.items():
            self._original[name] = original = module.forward
            module.forward = _gate(name, original)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for module in self._modules.values():
            module.__dict__.pop("forward", None)

    def run(self, call: Call) -> Any:
        """Run the block of `call` and return what its own code returns."""
        return call.context.copy().run(self._original[call.name], *call.args, **call.kwargs)


def _gate(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        current: Forward | None = getattr(_here, "forward", None)
        if current is None:
            return original(*args, **kwargs)
        return current._stop(Call(name, args, kwargs, contextvars.copy_context()))

    return forward


class Forward:
    """One forward pass of the model, stopped at the gate of `call`, or done.

    Args:
        model: a model whose gates are in place.
        inputs: keyword arguments of its forward.

    Attributes:
        call: the block call at which it waits; None once it is done.
        output: what the model returned, once it is done.
    """

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
        self.call: Call | None = None
        self.output: Any = None
        self._model = model
        self._inputs: dict[str, Any] | None = dict(inputs)
        self._answer: Any = None
        self._error: BaseException | None = None
        self._cancelled = False
        # The baton: its queue says who may run. Queues can be interrupted, and one put too many
        # (a pass cancelled while it runs) does no harm.
        self._go: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._back: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="suspended-forward")
        self._started = False

    def advance(self, answer: object = None) -> None:
        """Let the model go on with its block's result, up to the next gate or its end.

        Args:
            answer: what the block at whose gate it waits returned.

        Raises:
            BaseException: whatever the model's code raised, with its traceback.
        """
        self._answer, self.call = answer, None
        if self._started:
            self._go.put(None)
        else:
            self._started = True
            self._thread.start()
        self._back.get()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """End the pass; its thread unwinds and is gone when this returns."""
        self._cancelled, self.call = True, None
        if self._started and self._thread.is_alive():
            self._go.put(None)
            self._thread.join()

    def _run(self) -> None:
        _here.forward = self
        try:
            inputs, self._inputs = self._inputs, None
            with torch.no_grad():
                self.output = self._model(**(inputs or {}))
        except _Cancelled:
            pass
        except BaseException as error:  # it is the scheduler's to raise
            self._error = error
        finally:
            _here.forward = None
            self._back.put(None)

    def _stop(self, call: Call) -> Any:
        self.call = call
        del call
        self._back.put(None)
        self._go.get()
        if self._cancelled:
            raise _Cancelled
        answer, self._answer = self._answer, None
        return answer


def _unshared(value: Any) -> Any:
    return copy.deepcopy(value) if isinstance(value, Cache) else value


def without_cache(model: PreTrainedModel) -> dict[str, Any]:
    """Turn the model's caches off and return what its forward must be given for that.

    A block may then be called twice with the same arguments, and no keys and values are held.
    Some forwards take `use_cache`, others only read it from the config, which is changed here.
    """
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if getattr(config, "use_cache", False):
            config.use_cache = False
    takes = inspect.signature(model.forward).parameters
    return {"use_cache": False} if "use_cache" in takes else {}
