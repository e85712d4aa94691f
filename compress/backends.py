"""Where the parts of a grid are worked on: one after another here, in threads, or by Ray.

A pool takes parts (a function and what it is called with) and hands them back as they end, in
whatever order. Parts given to Ray are pickled, run on any machine of its cluster, and must find
their files there.
"""

from __future__ import annotations

import importlib
import importlib.util
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from compress.errors import RequestError

BACKENDS = ("local", "ray")


class Done(NamedTuple):
    """A part that has ended.

    Attributes:
        token: what it was submitted as.
        value: what its function returned.
        error: what it raised, or None.
    """

    token: Any
    value: Any
    error: BaseException | None = None

    def get(self) -> Any:
        """The value.

        Raises:
            Exception: what the part raised.
        """
        if self.error is not None:
            raise self.error
        return self.value


class Pool(Protocol):
    """Parts under way."""

    def share(self, value: Any) -> Any:
        """Prepare a value that many parts are called with, so that it travels once."""

    def submit(self, token: Any, function: Callable[..., Any], *given: Any) -> None:
        """Have `function(*given)` worked on; `token` names it."""

    def next(self, timeout: float | None = None) -> Done | None:
        """Wait for the next part to end; None after `timeout` seconds."""


def require_backend(name: str) -> None:
    """Refuse a backend that isn't installed.

    Raises:
        RequestError: Ray is asked for and not there.
    """
    if name == "ray" and importlib.util.find_spec("ray") is None:
        raise RequestError(
            "`--backend ray` needs the package ray, which isn't installed",
            "pip install ray; or use `--shard i/n` with one process each",
        )


@contextmanager
def open_pool(backend: str, threads: int = 0) -> Iterator[Pool]:
    """Open a pool; leaving it gives back what it took.

    Args:
        backend: local or ray.
        threads: local parts at a time, each in a thread of its own; 0 works on one after another,
            in the calling thread, when `next` is called.
    """
    if backend == "ray":
        ray: Any = importlib.import_module("ray")
        own = not ray.is_initialized()
        if own:
            ray.init(log_to_driver=False, logging_level="ERROR")
        try:
            yield _Ray(ray)
        finally:
            if own:
                ray.shutdown()
    elif threads:
        yield _Threads()
    else:
        yield _Here()


class _Here:
    """One after another, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, Callable[..., Any], tuple[Any, ...]]] = []

    def share(self, value: Any) -> Any:
        return value

    def submit(self, token: Any, function: Callable[..., Any], *given: Any) -> None:
        self._waiting.append((token, function, given))

    def next(self, timeout: float | None = None) -> Done | None:
        token, function, given = self._waiting.pop(0)
        return Done(token, function(*given))


class _Threads:
    """Each part in a thread; how many at a time is the caller's to say by what it submits."""

    def __init__(self) -> None:
        self._ended: queue.Queue[Done] = queue.Queue()

    def share(self, value: Any) -> Any:
        return value

    def submit(self, token: Any, function: Callable[..., Any], *given: Any) -> None:
        def work() -> None:
            try:
                self._ended.put(Done(token, function(*given)))
            except BaseException as error:
                self._ended.put(Done(token, None, error))

        threading.Thread(target=work, daemon=True).start()

    def next(self, timeout: float | None = None) -> Done | None:
        try:
            return self._ended.get(timeout=timeout)
        except queue.Empty:
            return None


class _Ray:
    """Each part a task of Ray's."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._tokens: dict[Any, Any] = {}
        self._remote: dict[Callable[..., Any], Any] = {}

    def share(self, value: Any) -> Any:
        return self._ray.put(value)

    def submit(self, token: Any, function: Callable[..., Any], *given: Any) -> None:
        if function not in self._remote:
            self._remote[function] = self._ray.remote(function)
        self._tokens[self._remote[function].remote(*given)] = token

    def next(self, timeout: float | None = None) -> Done | None:
        patience = {} if timeout is None else {"timeout": timeout}
        ended, _ = self._ray.wait(list(self._tokens), num_returns=1, **patience)
        if not ended:
            return None
        token = self._tokens.pop(ended[0])
        try:
            return Done(token, self._ray.get(ended[0]))
        except Exception as error:
            return Done(token, None, error)
