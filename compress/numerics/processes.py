"""The team of several processes: torch.distributed for tensors, a lifeline for deaths."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from compress.errors import RequestError, RunError
from compress.numerics import lifeline
from compress.numerics.ranks import Team, split_cuda

T = TypeVar("T")
_MEET = timedelta(minutes=10)
# Rank 0 may score a model for hours while the others wait. Deaths are the lifeline's to notice.
_PATIENCE = timedelta(days=30)
_WORD = 5.0  # seconds in which the word of an end comes after the error it causes


class Processes(Team):
    """This process among those that a launcher has started. Made by `join`."""

    def __init__(
        self, life: lifeline.Lifeline, control: dist.ProcessGroup, fast: dist.ProcessGroup | None
    ) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._life = life
        self._control = control
        self._fast = fast

    @classmethod
    @contextlib.contextmanager
    def join(cls, device: str, remedy: str) -> Iterator[Processes]:
        """Meet the others; leave them at the end, saying why.

        Raises:
            RequestError: they can't be met.
        """
        own = not dist.is_initialized()
        try:
            if own:
                dist.init_process_group(_backend(device), timeout=_MEET)
            control = dist.new_group(backend="gloo", timeout=_PATIENCE)
            if own:  # met: what libraries exchange may take longer, such as a wait for a save
                dist.distributed_c10d._set_pg_timeout(_PATIENCE)
            life = _lifeline(control, remedy)
        except (RuntimeError, OSError, ValueError) as error:
            raise RequestError(
                f"the {os.environ['WORLD_SIZE']} processes can't meet: "
                f"{' '.join(str(error).split())[:200]}",
                "start them by `torchrun --nproc-per-node N -m compress …`",
            ) from error
        with _closing(life, control, own):
            yield cls(life, control, _nccl(device, control))

    def device(self, name: str) -> str:
        """This process's GPU, where only "cuda" is said."""
        found = split_cuda(name, _local_rank())
        if found.startswith("cuda"):
            torch.cuda.set_device(found)
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """Have rank 0 make a value (plain data); all get it."""
        held = [make() if self.first else None]
        with self._exchange():
            dist.broadcast_object_list(held, src=0, group=self._control)
        return cast(T, held[0])

    def gather(self, value: T) -> list[T]:
        """Every rank's value (plain data), in the order of ranks."""
        held: list[T | None] = [None] * self.size
        with self._exchange():
            dist.all_gather_object(held, value, group=self._control)
        return cast("list[T]", held)

    def send(self, tensor: Tensor, to: int) -> None:
        """Send a tensor to another rank, which must `receive` it."""
        self.sent += tensor.nbytes
        with self._exchange():
            dist.send(self._bytes(tensor), to, group=self._group(tensor))

    def receive(self, into: Tensor, source: int) -> None:
        """Fill a tensor with what another rank sends."""
        buffer = torch.empty_like(self._bytes(into))
        with self._exchange():
            dist.recv(buffer, source, group=self._group(into))
        _fill(into, buffer)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Make a tensor, of one shape and dtype everywhere, in all ranks what it is in one."""
        # Those who receive do so in memory of its own: PyTorch counts the writes to a tensor, but
        # not those of an exchange.
        buffer = self._bytes(tensor)
        if source != self.rank:
            buffer = torch.empty_like(buffer)
        with self._exchange():
            dist.broadcast(buffer, source, group=self._group(tensor))
        if source == self.rank:
            self.sent += tensor.nbytes * (self.size - 1)
        else:
            _fill(tensor, buffer)

    def wait(self) -> None:
        """Go on when all have come here."""
        self.gather(None)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Have an error inside that another rank's end has caused name that end instead."""
        try:
            yield
        except RuntimeError:
            self._life.check(wait=_WORD)
            raise

    def _group(self, tensor: Tensor) -> dist.ProcessGroup:
        return self._fast if self._fast is not None and tensor.is_cuda else self._control

    def _bytes(self, tensor: Tensor) -> Tensor:
        """A tensor's bytes where its group can reach them: gloo takes host memory only."""
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        return flat if self._fast is not None or not tensor.is_cuda else flat.cpu()

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        """Turn a peer's end into its reason."""
        self._life.check()
        try:
            with self.watched():
                yield
        except RuntimeError as error:
            raise RunError(
                f"the exchange between ranks failed: {' '.join(str(error).split())[:200]}",
                self._life.remedy,
            ) from error


def _lifeline(control: dist.ProcessGroup, remedy: str) -> lifeline.Lifeline:
    """Connect every process with rank 0."""
    rank, size = dist.get_rank(), dist.get_world_size()
    server = None
    address: list[lifeline.Address | None] = [None]
    if rank == 0:
        server, address[0] = lifeline.listen(os.environ["MASTER_ADDR"])
    dist.broadcast_object_list(address, src=0, group=control)
    known = cast(lifeline.Address, address[0])
    if server is not None:
        links = lifeline.accept(server, known.token, size)
    else:
        links = lifeline.connect(known, rank)
    return lifeline.Lifeline(rank, links, known.token, remedy)


@contextlib.contextmanager
def _closing(life: lifeline.Lifeline, control: dist.ProcessGroup, own: bool) -> Iterator[None]:
    """Leave in order: with a good-bye, or with the error that ends all."""
    try:
        yield
    except BaseException as error:
        life.leave(error)  # the groups stay: closing them could wait for a peer that is stuck
        error.reported = True  # type: ignore[attr-defined]  # rank 0 has had the time to tell it
        raise
    dist.barrier(group=control)
    life.leave(None)
    if own:
        dist.destroy_process_group()


def _fill(tensor: Tensor, buffer: Tensor) -> None:
    """Give a tensor the values whose bytes came."""
    tensor.copy_(buffer.view(tensor.dtype).reshape(tensor.shape))


def _own_gpus(device: str) -> bool:
    """Whether each process of this machine has a GPU of its own, and NCCL."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    return (
        device in ("auto", "cuda")
        and torch.cuda.is_available()
        and torch.cuda.device_count() >= here
        and dist.is_nccl_available()
    )


def _backend(device: str) -> str:
    """What the default group goes by: libraries that exchange by themselves (DDP) use that one."""
    return "cpu:gloo,cuda:nccl" if _own_gpus(device) else "gloo"


def _nccl(device: str, control: dist.ProcessGroup) -> dist.ProcessGroup | None:
    """A group of NCCL where each process of every machine has a GPU of its own."""
    everywhere: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(everywhere, _own_gpus(device), group=control)
    if not all(everywhere):
        return None
    torch.cuda.set_device(_local_rank())
    return dist.new_group(backend="nccl", timeout=_PATIENCE)


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")))
