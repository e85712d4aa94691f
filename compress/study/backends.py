"""The groups of a study, worked on in this process, or by Ray on many machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from compress.backends import open_pool
from compress.progress import Progress, silent
from compress.study.cells import Group
from compress.study.preparing import Calibration
from compress.study.settings import StudySettings
from compress.study.working import Worker


def run_groups(
    worker: Worker,
    groups: Sequence[Group],
    calibration: Callable[[Group], Calibration],
    settings: StudySettings,
    progress: Progress,
) -> Iterator[tuple[Group, int]]:
    """Yield each group when it is done, with how many were done before it.

    The results are in the worker's journal, in a directory that all machines see. Closing the
    iterator leaves the rest undone.
    """
    with open_pool(settings.backend) as pool:
        far = settings.backend == "ray"
        shared = pool.share(worker.plain()) if far else None
        for group in groups:
            if far:
                pool.submit(group, _work, shared, group, calibration(group))
            else:
                pool.submit(group, _here, worker, group, calibration, progress)
        for number in range(len(groups)):
            done = pool.next()
            assert done is not None
            worker.passes += done.get()
            yield done.token, number


def _here(
    worker: Worker,
    group: Group,
    calibration: Callable[[Group], Calibration],
    progress: Progress,
) -> float:
    """Work on one group in this process, whose worker counts its passes itself."""
    worker.work(group, calibration(group), progress)
    return 0.0


def _work(plain: Any, group: Group, calibration: Calibration) -> float:
    """Work on one group in a process of Ray's; returns the passes of its walks."""
    worker = Worker(*plain)
    worker.work(group, calibration, silent)
    return worker.passes
