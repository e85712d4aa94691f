"""A walk's journal: one file per finished part, and how they become stock shards.

A part's file appears whole or not at all (temporary name, fsync, rename, fsync of the directory),
so after `kill -9` what is there is finished. Tensors have the names that stock `save_pretrained`
would give them, so that joining parts only moves bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import dot_natural_key, revert_weight_conversion

from compress.checkpoints.durable import sync, writing
from compress.checkpoints.source import Source
from compress.checkpoints.tensorfiles import StoredTensor, file_tensors
from compress.errors import RunError

_SUFFIX = ".safetensors"
_NOTE = "compress"


class ShardWriter:
    """Writes parts of one model, reads them back, and joins them into a checkpoint's weights.

    Args:
        directory: where the parts lie; made if absent. Left-overs of a killed writer are removed.
        model: the model that the parts belong to; a skeleton will do.
        mapping: the conversions that loading it needed (`BlockLoader.conversions`); their reverse
            gives the stock names. None leaves that to the library.
        max_shard_size: largest file that `join` makes, such as "5GB".
        keep: the checkpoint whose dtypes are kept, tensor by tensor, whatever the walk computes in;
            None writes the dtypes that come.
        reads_only: another process writes there; nothing is made or removed.
    """

    def __init__(
        self,
        directory: str | Path,
        model: PreTrainedModel,
        mapping: Sequence[Any] | None = None,
        max_shard_size: int | str = "5GB",
        keep: Source | None = None,
        *,
        reads_only: bool = False,
    ) -> None:
        self.directory = Path(directory)
        self.model = model
        self.mapping = mapping
        self.max_shard_size = max_shard_size
        self.keep = keep
        if reads_only:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        for left in self.directory.glob("*.tmp*"):
            left.unlink()

    def write(
        self, part: str, tensors: Mapping[str, Tensor], note: Mapping[str, Any] | None = None
    ) -> None:
        """Write one part; when this returns, it survives a crash.

        Args:
            part: its name, such as a block's.
            tensors: run-time name -> tensor; tied and never-saved ones are left out.
            note: JSON values to be kept with it.

        Raises:
            RunError: the disk is full.
        """
        stock = self.stock(tensors)
        path = self._path(part)
        temporary = path.with_suffix(".tmp")
        metadata = {"format": "pt", _NOTE: json.dumps(note or {}, allow_nan=False)}
        try:
            with writing(path):
                save_file(stock, temporary, metadata=metadata)
                sync(temporary)
                os.replace(temporary, path)
                sync(self.directory)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def stock(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return run-time tensors as stock `save_pretrained` would name and shape them, on CPU."""
        left_out = set(self.model.all_tied_weights_keys) | set(
            self.model._keys_to_ignore_on_save or ()
        )
        kept = {name: value for name, value in tensors.items() if name not in left_out}
        if self.mapping is not None:
            # Every partial load overwrites this list by what that part alone needed.
            self.model._weight_conversions = list(self.mapping)  # type: ignore[assignment]
        with torch.no_grad():
            reverted = revert_weight_conversion(self.model, kept)
        return {
            name: self._as_on_disk(name, value.detach().cpu()).contiguous()
            for name, value in reverted.items()
        }

    def _as_on_disk(self, name: str, value: Tensor) -> Tensor:
        """Return a tensor in the dtype that it has on disk; the stored one where it is unchanged.

        A checkpoint of one dtype may hold some tensors in another, such as a router in float32:
        what is not edited must not be rounded on the way.
        """
        if self.keep is None or not value.is_floating_point():
            return value
        stored = self.keep.tensors.get(name)
        dtype = self.keep.dtype if stored is None else stored.dtype
        if dtype == value.dtype or not dtype.is_floating_point:
            return value
        if stored is not None and stored.shape == tuple(value.shape):
            original = self.keep.read([name])[name]
            if torch.equal(original.to(value.dtype), value):
                return original
        return value.to(dtype)

    def remove(self, part: str) -> None:
        """Forget one part, if it is there."""
        self._path(part).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all parts."""
        for part in self.parts():
            self.remove(part)

    def parts(self) -> set[str]:
        """Return the names of the finished parts."""
        return {_decode(path.stem) for path in self.directory.glob(f"*{_SUFFIX}")}

    def read(self, part: str) -> dict[str, Tensor]:
        """Return a part's tensors by stock name, memory-mapped; `BlockLoader.load` takes them.

        Raises:
            RunError: the part isn't there, as on a machine that doesn't see rank 0's files.
        """
        path = self._path(part)
        if not path.is_file():
            raise RunError(
                f"`{path}` isn't there, though it has been written",
                "OUT must lie on a file system that all machines of the run share",
            )
        return load_file(path)

    def note(self, part: str) -> dict[str, Any]:
        """Return what `write` was given as the part's note."""
        with safe_open(str(self._path(part)), framework="pt") as handle:
            return json.loads((handle.metadata() or {}).get(_NOTE, "{}"))

    def stored(self) -> dict[str, StoredTensor]:
        """Return where the parts' tensors lie, by stock name."""
        found: dict[str, StoredTensor] = {}
        for path in sorted(self.directory.glob(f"*{_SUFFIX}")):
            found.update(file_tensors(path))
        return found

    def join(self, out: str | Path) -> None:
        """Write the parts' tensors under `out` as `save_pretrained` would: one file or shards.

        Parts stay. Tensors are mapped, not read into memory. The files are not synced: whoever
        renames `out` into place does that.
        """
        join_files(self.directory, out, self.model.num_parameters(), self.max_shard_size)

    def _path(self, part: str) -> Path:
        return self.directory / f"{_encode(part)}{_SUFFIX}"


def join_files(
    directory: Path, out: str | Path, parameters: int, max_shard_size: int | str = "5GB"
) -> None:
    """Write all tensors of a directory's files under `out` as `save_pretrained` would.

    Args:
        directory: holds `.safetensors` files; they stay. Tensors are mapped, not read into memory.
        out: made if absent.
        parameters: of the model, for the index.
        max_shard_size: largest file, such as "5GB".

    Raises:
        RunError: the disk is full.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Tensor] = {}
    for path in directory.glob(f"*{_SUFFIX}"):
        stored.update(load_file(path))
    split = split_torch_state_dict_into_shards(
        {name: stored[name] for name in sorted(stored, key=dot_natural_key)},
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        with writing(out / file):
            save_file({n: stored[n] for n in names}, out / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {
            "metadata": {"total_parameters": parameters, **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (out / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _encode(part: str) -> str:
    """Return a part's file name: the part outside the blocks has an empty name."""
    return part or "_rest"


def _decode(stem: str) -> str:
    return "" if stem == "_rest" else stem
