"""Spectra that were measured before, found again by the content of the tensor they belong to.

A key is the SHA-256 of a tensor's bytes, shape and dtype and of what was measured with which
settings. So no name, path or model enters: another model hits an entry only where its tensor is
the same to the last bit, and a changed tensor never does. One file per entry, written beside its
place and moved there whole, so any number of processes may share a directory. A file that another
version of the measures wrote, that is cut short or damaged, counts as absent and is replaced, and
`remarks` says so.
"""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compress.checkpoints.caches import cache_directory, put_whole

# Raised with every change of a number that is cached: eigenvalues, farms, rand_distance.
MEASURES = 2


class SpectraCache:
    """Entries below one directory. What can't be read or written costs time, never the run.

    Attributes:
        directory: where entries lie; made when the first is written.
        hits: matrices of which everything was found.
        misses: matrices of which something was measured.
        outdated: entries that another version wrote; measured anew.
        damaged: entries that were cut short or altered; measured anew.
        problem: why entries couldn't be written, None if they could.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self.directory = Path(directory or cache_directory()) / "spectra"
        self.hits = 0
        self.misses = 0
        self.outdated = 0
        self.damaged = 0
        self._lock = threading.Lock()  # matrices are read by many threads
        self.problem: str | None = None

    def count(self, hit: bool) -> None:
        """Account one matrix."""
        self.hits += hit
        self.misses += not hit

    @staticmethod
    def content(weight: Tensor) -> str:
        """The digest of a tensor's dtype, shape and bytes, on whatever device."""
        plain = weight.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{plain.dtype} {list(plain.shape)} ".encode())
        digest.update(plain.view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def read(self, content: str, what: str) -> np.ndarray | None:
        """What was written for (content, what), float64 [N]; None if there is nothing usable."""
        try:
            head, _, body = self._path(content, what).read_bytes().partition(b"\n")
        except OSError:
            return None
        if head != self._head(content, what, body):
            self._distrust(head)
            return None
        return np.frombuffer(body, "<f8").astype(np.float64)

    def _distrust(self, head: bytes) -> None:
        """Count an entry that isn't used, by the reason."""
        try:
            version = json.loads(head)["measures"]
        except (ValueError, KeyError, TypeError):
            version = None
        with self._lock:
            if isinstance(version, int) and version != MEASURES:
                self.outdated += 1
            else:
                self.damaged += 1

    def remarks(self) -> list[str]:
        """What a user should know of this cache: entries that weren't used, why none is kept."""
        said = []
        for count, what in (
            (self.outdated, "written by another version"),
            (self.damaged, "damaged"),
        ):
            if count:
                were = "entry was" if count == 1 else "entries were"
                said.append(f"spectra cache: {count} {were} {what}, and measured anew")
        if self.problem is not None:
            said.append(f"spectra couldn't be kept in the cache: {self.problem}")
        return said

    def write(self, content: str, what: str, values: np.ndarray) -> None:
        """Keep float64 values; a directory that can't be written is remembered as `problem`."""
        path, body = self._path(content, what), values.astype("<f8").tobytes()
        try:
            put_whole(path, self._head(content, what, body) + b"\n" + body)
        except OSError as error:
            self.problem = f"{self.directory}: {error.strerror or error}"

    def _path(self, content: str, what: str) -> Path:
        key = hashlib.sha256(f"{content} {what}".encode()).hexdigest()
        return self.directory / key[:2] / key

    def _head(self, content: str, what: str, body: bytes) -> bytes:
        head = {"measures": MEASURES, "tensor": content, "what": what}
        return json.dumps(head | {"body": hashlib.sha256(body).hexdigest()}).encode()
