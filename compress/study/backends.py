"""Where the groups of a study are worked on: in this process, or by Ray on many machines."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from compress.errors import RequestError
from compress.progress import Progress, silent
from compress.study.cells import Group
from compress.study.preparing import Calibration
from compress.study.settings import StudySettings
from compress.study.working import Worker


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


def run_groups(
    worker: Worker,
    groups: Sequence[Group],
    calibration: Callable[[Group], Calibration],
    settings: StudySettings,
    progress: Progress,
) -> Iterator[tuple[Group, int]]:
    """Yield each group when it is done, with how many were done before it.

    The results are in the worker's journal. Closing the iterator leaves the rest undone.
    """
    if settings.backend == "ray":
        yield from _by_ray(worker, groups, calibration)
        return
    for number, group in enumerate(groups):
        worker.work(group, calibration(group), progress)
        yield group, number


def _by_ray(
    worker: Worker, groups: Sequence[Group], calibration: Callable[[Group], Calibration]
) -> Iterator[tuple[Group, int]]:
    """Give one task per group to Ray; all nodes must see the study's directory."""
    ray: Any = importlib.import_module("ray")
    own = not ray.is_initialized()
    if own:
        ray.init(log_to_driver=False)
    try:
        remote = ray.remote(_work)
        shared = ray.put(worker.plain())
        waiting = {remote.remote(shared, g, calibration(g)): g for g in groups}
        done = 0
        while waiting:
            (first, *_), _ = ray.wait(list(waiting), num_returns=1)
            worker.passes += ray.get(first)
            yield waiting.pop(first), done
            done += 1
    finally:
        if own:
            ray.shutdown()


def _work(plain: Any, group: Group, calibration: Calibration) -> float:
    """Work on one group in a process of Ray's; returns the passes of its walks."""
    worker = Worker(*plain)
    worker.work(group, calibration, silent)
    return worker.passes
