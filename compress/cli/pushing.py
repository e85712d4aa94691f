"""What `--push-to-hub` does around a command."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from compress import launcher
from compress.errors import RequestError


@contextmanager
def pushed(name: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Make sure of the account first, and upload OUT once the command has written it.

    Args:
        name: the repository.
        given: the command's options.

    Raises:
        RequestError: the command writes no OUT, or nothing can be uploaded.
        RunError: the upload failed.
    """
    from compress.checkpoints.pushing import check_push, push

    output = given.get("output")
    if output is None or given.get("dry_run"):
        why = "a dry run writes nothing" if given.get("dry_run") else "no output directory"
        raise RequestError(f"`--push-to-hub {name}`: {why}", "add `-o OUT`, without --dry-run")
    if launcher.rank() == 0:
        check_push(name)
    yield
    if launcher.rank() == 0:
        address = push(output, name)
        if not given.get("quiet"):
            print(f"uploaded to {address}", file=sys.stderr)
