"""`--device` and `--dtype` from their names to what torch takes."""

from __future__ import annotations

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
