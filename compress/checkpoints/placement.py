"""`--device` and `--dtype` from their names to what torch takes."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from compress.errors import RequestError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


def resolve_device(name: str | torch.device = "auto") -> str:
    """Turn a device's name into one that this machine has.

    Args:
        name: "auto" (the first GPU, else the CPU), "cpu", "cuda", "cuda:1", "mps".

    Raises:
        RequestError: no such device here.
    """
    if str(name) == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RequestError(
            f"`--device {name}` isn't a device", "auto, cpu, cuda, cuda:1, mps"
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise RequestError(
                f"`--device {name}`: this machine has {count} CUDA devices",
                "`compress doctor` says what is missing; `--device cpu` works everywhere",
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise RequestError(f"`--device {name}`: this machine has no Metal device")
    elif device.type not in ("cpu", "cuda", "mps"):
        raise RequestError(f"`--device {name}` isn't supported", "auto, cpu, cuda, cuda:1, mps")
    return str(device)


def resolve_dtype(name: str | torch.dtype = "auto") -> torch.dtype | None:
    """Turn a dtype's name into torch's; None for "auto", which keeps what is on disk.

    Raises:
        RequestError: not a floating dtype that weights are stored in.
    """
    if isinstance(name, torch.dtype):
        return name
    if name == "auto":
        return None
    found = DTYPES.get(_SHORT.get(name, name).removeprefix("torch."))
    if found is None:
        raise RequestError(f"`--dtype {name}` isn't a dtype", f"auto, {', '.join(DTYPES)}")
    return found


def compute_dtype(stored: torch.dtype, device: str | torch.device, size: int = 0) -> torch.dtype:
    """The dtype to compute in with weights stored as `stored`.

    A CPU without instructions for 16-bit floats emulates them, 5 to 50 times slower than float32
    (measured on an AVX2 machine); there the weights are raised, which loses nothing, as long as
    they then fit into half of the memory that is free.

    Args:
        stored: dtype of the weights on disk.
        device: where the model runs.
        size: bytes of the weights that are in memory at a time, as stored.
    """
    if torch.device(device).type != "cpu" or stored not in (torch.bfloat16, torch.float16):
        return stored
    if _has_instructions(stored) or 2 * size > free_memory() / 2:
        return stored
    return torch.float32


def _has_instructions(dtype: torch.dtype) -> bool:
    # The only place where torch tells is this internal one; other processors than x86 are taken
    # at their word.
    known = getattr(torch.ops.mkldnn, f"_is_mkldnn_{_NAMES[dtype]}_supported", None)
    return True if known is None else bool(known())


_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def free_memory(device: str | torch.device = "cpu") -> float:
    """Bytes that can be taken without swapping; without end where the system doesn't tell."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.mem_get_info(torch.device(device))[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration, ValueError):
        return math.inf
