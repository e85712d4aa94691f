"""The weight files of a checkpoint: found, checked by their headers, read tensor by tensor.

Nothing here unpickles: `.bin` files are opened by `torch.load(weights_only=True, mmap=True)`, and
one that needs more than tensors is refused. Everything is checked when the checkpoint is opened, so
that a truncated file or a missing shard is named before any work begins.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from compress.errors import RequestError

# What `from_pretrained` looks for, in its order: a single file hides an index beside it.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}


class StoredTensor(NamedTuple):
    """Where a tensor lies on disk, and its form."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """The number of its elements."""
        return torch.Size(self.shape).numel()


def read_json(path: Path) -> dict:
    """Return the JSON object in `path`; RequestError names the file and line of a fault."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError(f"`{path}` is not UTF-8 text: {error.reason}") from None
    except json.JSONDecodeError as error:
        raise RequestError(
            f"`{path}` is not valid JSON: {error.msg} at line {error.lineno}",
            "the file may be truncated: copy or download it again",
        ) from None
    except OSError as error:
        raise RequestError(f"`{path}` can't be read: {error.strerror}") from None
    if not isinstance(value, dict):
        raise RequestError(f"`{path}` holds a JSON {type(value).__name__}, not an object")
    return value


def weight_files(directory: Path) -> list[Path]:
    """Return the files that hold the weights, as `from_pretrained` would choose them.

    An empty list means that there are none.

    Raises:
        RequestError: an index is malformed, names a file outside the directory, or a shard that
            isn't there.
    """
    for name in WEIGHT_FILES:
        path = directory / name
        if not path.is_file():
            continue
        return _shards(path) if name.endswith(".json") else [path]
    return []


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Return every stored tensor by its name on disk, from the files' headers.

    Raises:
        RequestError: a file is truncated or corrupt, is a pickle that needs more than tensors, an
            index names a tensor that its shard lacks, or a shard is missing.
    """
    files = weight_files(directory)
    tensors: dict[str, StoredTensor] = {}
    placed = _weight_map(directory)
    for file in files:
        found = file_tensors(file)
        lacking = sorted(n for n, shard in placed.items() if shard == file.name and n not in found)
        if lacking:
            raise RequestError(
                f"`{file}` lacks the tensor `{lacking[0]}` that the index places there"
                + (f" ({len(lacking)} such tensors)" if len(lacking) > 1 else ""),
                "the shard is of another checkpoint or incomplete: copy or download it again",
            )
        # A name in two shards counts where the index places it.
        tensors.update({n: t for n, t in found.items() if placed.get(n, file.name) == file.name})
    return tensors


def read_tensors(tensors: dict[str, StoredTensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return the named tensors, memory-mapped copy-on-write: edits never reach the file."""
    by_file: dict[Path, list[str]] = {}
    for name in names:
        by_file.setdefault(tensors[name].file, []).append(name)
    result: dict[str, torch.Tensor] = {}
    for file, wanted in by_file.items():
        if file.suffix == ".bin":
            state = _load_bin(file)
            result.update({name: state[name] for name in wanted})
        else:
            with safe_open(str(file), framework="pt") as handle:
                result.update({name: handle.get_tensor(name) for name in wanted})
    return result


def _index(directory: Path) -> Path | None:
    """Return the index that is in force, if the weights are sharded."""
    first = next((directory / name for name in WEIGHT_FILES if (directory / name).is_file()), None)
    return first if first is not None and first.suffix == ".json" else None


def _weight_map(directory: Path) -> dict[str, str]:
    """Return tensor name -> shard name, empty without an index."""
    index = _index(directory)
    if index is None:
        return {}
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise RequestError(f"`{index}` has no `weight_map` that says which shard holds a tensor")
    for name, shard in placed.items():
        if not isinstance(shard, str) or not shard or Path(shard).name != shard or "\\" in shard:
            raise RequestError(
                f"`{index}` places `{name}` in `{shard}`, which is no plain file name",
                "an index may name only files beside it; don't trust this checkpoint",
            )
        if not shard.endswith((".safetensors", ".bin")):
            raise RequestError(f"`{index}` places `{name}` in `{shard}`, which is no weight file")
    return placed


def _shards(index: Path) -> list[Path]:
    """Return the index's shards, all of them present."""
    names = sorted(set(_weight_map(index.parent).values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise RequestError(
            f"`{index.parent}` lacks {len(missing)} of its {len(names)} weight files: "
            f"{', '.join(f'`{name}`' for name in missing[:3])}{', …' if len(missing) > 3 else ''}",
            "copy or download the missing files",
        )
    return [index.parent / name for name in names]


def file_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors that `file` says it holds, its size checked against its header.

    Raises:
        RequestError: it is truncated, corrupt, or a pickle that needs more than tensors.
    """
    if file.suffix == ".bin":
        state = _load_bin(file)
        return {n: StoredTensor(file, tuple(t.shape), t.dtype) for n, t in state.items()}
    found: dict[str, StoredTensor] = {}
    try:
        with safe_open(str(file), framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118  (a handle is no mapping)
                part = handle.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise RequestError(
                        f"`{file}` stores `{name}` as {part.get_dtype()}, which can't be read here",
                        f"known types: {', '.join(_DTYPES)}",
                    )
                found[name] = StoredTensor(file, tuple(part.get_shape()), dtype)
    except (SafetensorError, OSError) as error:
        raise RequestError(
            f"`{file}` ({file.stat().st_size:,} bytes) is truncated or no safetensors file: "
            f"{error}",
            "copy or download the file again",
        ) from None
    return found


def _load_bin(file: Path) -> dict[str, torch.Tensor]:
    """Return a `.bin` file's tensors, mapped where its format allows, never unpickling code."""
    try:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            state = torch.load(file, map_location="cpu", weights_only=True)  # written before 1.6
    except pickle.UnpicklingError as error:
        raise RequestError(
            f"`{file}` is a pickle that needs more than tensors to open, or is corrupt: "
            f"{str(error).splitlines()[0][:160]}",
            "convert it to safetensors where you trust it; pickles run code when opened",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"`{file}` ({file.stat().st_size:,} bytes) is truncated or no PyTorch weight file: "
            f"{(str(error) or type(error).__name__).splitlines()[0][:160]}",
            "copy or download the file again",
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in state.items()
    ):
        raise RequestError(f"`{file}` holds a {type(state).__name__}, not tensors by name")
    return state
