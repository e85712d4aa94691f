"""A checkpoint as it lies on disk: opened, checked, described, loaded whole.

`open_source` does every check that needs no weights in memory, so that a bad request ends here with
one line instead of a traceback an hour later. The dtype on disk is kept unless another is asked
for, which also keeps weights memory-mapped on CPU.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto

from compress.checkpoints import packing, tensorfiles
from compress.checkpoints.configs import first_line, read_config
from compress.checkpoints.hub import locate
from compress.checkpoints.quiet import without_bars
from compress.checkpoints.tensorfiles import StoredTensor, read_json
from compress.errors import RequestError
from compress.progress import Progress, silent

# What save_pretrained, this package or a training run writes anew; all else travels with the model.
_OURS = {
    *("config.json", "plan.json", "receipt.json", "items.json", "journal.json"),
    *("experts.png", "loss.png", "metrics.jsonl", "widths.png", "prompt.png"),
}
_OTHER_WEIGHTS = {".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".tflite"}
_LEFT_BEHIND = {".safetensors", ".bin", ".py", ".pyc"} | _OTHER_WEIGHTS
_TOKENIZER_FILES = [
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tekken.json"),
    *("spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt"),
]
# Learned positions of these families begin after the padding token's index.
_POSITIONS_AFTER_PADDING = {
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "esm"),
    *("data2vec-text", "mpnet", "longformer", "luke", "mluke", "ibert", "layoutlmv3", "markuplm"),
}
_FALLBACK_CLASSES: tuple[Any, ...] = (
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    modeling_auto.MODEL_FOR_MASKED_LM_MAPPING,
    modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    modeling_auto.MODEL_FOR_CTC_MAPPING,
    modeling_auto.MODEL_MAPPING,
)
_CHUNK = 1 << 24  # elements looked at in one go


@dataclass(frozen=True)
class Source:
    """An opened checkpoint; made by `open_source`."""

    name: str
    """The model as the user typed it."""
    directory: Path
    """Where its files lie."""
    config: PretrainedConfig
    revision: str | None
    """The Hub snapshot's commit; None for a local directory."""
    tensors: dict[str, StoredTensor] = field(repr=False)
    """Every stored tensor by its name on disk; empty if opened without weights."""
    trust_remote_code: bool = False

    @property
    def files(self) -> dict[str, Path]:
        """Tensor name on disk -> the file that holds it."""
        return {name: stored.file for name, stored in self.tensors.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the floating tensors on disk; where they are mixed, the config's.

        A mixed checkpoint whose config names none has the dtype of most of its elements.
        """
        count: Counter[torch.dtype] = Counter()
        for stored in self.tensors.values():
            if stored.dtype.is_floating_point:
                count[stored.dtype] += stored.numel
        if len(count) == 1:
            return next(iter(count))
        named = getattr(self.config, "dtype", None)
        if isinstance(named, torch.dtype):
            return named
        return count.most_common(1)[0][0] if count else torch.float32

    def parameters_on_disk(self) -> int:
        """Return the number of stored tensor elements; a packed weight counts whole."""
        return sum(packing.whole_counts(self.tensors).values())

    def bytes_on_disk(self) -> int:
        """Return the size of the weight files in bytes."""
        return sum(file.stat().st_size for file in sorted(set(self.files.values())))

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return the tensors with these names on disk, memory-mapped copy-on-write."""
        return tensorfiles.read_tensors(self.tensors, names)

    def digest(self) -> str:
        """Return "sha256:…" of the config and of every tensor's name, form and bytes.

        It doesn't depend on how tensors are spread over files, and is computed once.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        whole = hashlib.sha256()
        config = read_json(self.directory / "config.json")
        for volatile in ("transformers_version", "_name_or_path"):
            config.pop(volatile, None)
        whole.update(json.dumps(config, sort_keys=True).encode())
        with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
            whole.update(b"".join(sorted(pool.map(_tensor_digest, self._mapped()))))
        return f"sha256:{whole.hexdigest()}"

    def _mapped(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor, mapped, a file at a time: a header is parsed once, not per tensor."""
        names: dict[Path, list[str]] = {}
        for name, stored in self.tensors.items():
            names.setdefault(stored.file, []).append(name)
        for own in names.values():
            yield from self.read(own).items()

    def companions(self) -> list[Path]:
        """Return the files that travel with the model byte for byte, in order of name.

        These are all regular files of the directory but weights, indices, `config.json`, code and
        what this package writes: tokenizer or processor files, generation config, licence. Hub
        snapshots hold symbolic links: copy their targets.
        """
        return sorted(
            path
            for path in self.directory.iterdir()
            if path.is_file()
            and not path.name.startswith(".")
            and path.name not in _OURS
            and path.suffix not in _LEFT_BEHIND
            and not path.name.endswith(".index.json")
        )

    def model_class(self) -> type[PreTrainedModel]:
        """Return the class that `config.architectures` names, else one that suits the config.

        Raises:
            RequestError: the config names no class that transformers has, and suits none.
        """
        named = (getattr(self.config, "architectures", None) or [None])[0]
        remote = self._remote_class(named)
        if remote is not None:
            return remote
        known = getattr(transformers, named, None) if named else None
        if isinstance(known, type) and issubclass(known, PreTrainedModel):
            return known
        for mapping in _FALLBACK_CLASSES:
            found = mapping.get(type(self.config), None)
            if found is not None:
                return next(iter(found)) if isinstance(found, tuple) else found
        raise RequestError(
            f"`{self.directory / 'config.json'}` names the architecture `{named}`, which "
            f"transformers {transformers.__version__} doesn't have",
            "a newer transformers may know it",
        )

    def _remote_class(self, named: str | None) -> type[PreTrainedModel] | None:
        """Return the class of the checkpoint's own code, where the user has allowed it."""
        auto_map = getattr(self.config, "auto_map", None) or {}
        if not self.trust_remote_code or not auto_map:
            return None
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        references = [ref for key, ref in auto_map.items() if key.startswith("AutoModel")]
        matching = [ref for ref in references if named and str(ref).endswith(f".{named}")]
        if not references:
            return None
        return get_class_from_dynamic_module((matching or references)[0], str(self.directory))

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the checkpoint's tokenizer, read once, or None if it ships none.

        Raises:
            RequestError: there are tokenizer files, but they can't be used.
        """
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        if not any((self.directory / name).is_file() for name in _TOKENIZER_FILES):
            return None
        try:
            return transformers.AutoTokenizer.from_pretrained(
                self.directory, trust_remote_code=self.trust_remote_code
            )
        except Exception as error:
            raise RequestError(
                f"the tokenizer in `{self.directory}` can't be used: {first_line(error)}",
                "copy the tokenizer files of the original model into the directory",
            ) from error

    def token_limit(self) -> int | None:
        """Return the longest sequence, in tokens, that the model is made for.

        None where positions are relative (T5), linear biases (ALiBi) or absent (state spaces).
        """
        config: Any = self.config.get_text_config(decoder=True)
        attention = getattr(config, "attn_config", None)
        if getattr(config, "alibi", False) or getattr(attention, "alibi", False):
            return None
        for key in (
            "max_position_embeddings",
            "max_target_positions",
            "n_positions",
            "max_seq_len",
        ):
            limit = getattr(config, key, None)
            if isinstance(limit, int) and limit > 0:
                if config.model_type in _POSITIONS_AFTER_PADDING:
                    limit -= (config.pad_token_id or 0) + 1
                return limit
        return None

    def load(
        self, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> PreTrainedModel:
        """Return the whole model on `device` in eval mode.

        Args:
            dtype: the weights' dtype; None keeps what is on disk, on CPU memory-mapped.
            device: where the weights go.

        Raises:
            RequestError: tensors are missing from disk, or don't have the config's shapes.
        """
        options: dict[str, Any] = {"dtype": "auto" if dtype is None else dtype}
        if torch.device(device).type != "cpu":
            options["device_map"] = {"": device}
        kind: Any = self.model_class()
        try:
            with without_bars():
                model, info = kind.from_pretrained(
                    self.directory, output_loading_info=True, **options
                )
        except (ValueError, RuntimeError, KeyError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise RequestError(
                f"`{self.directory}` doesn't load as `{kind.__name__}`: {first_line(error)}",
                "config.json and the weights may be of different models",
            ) from error
        never_saved = set(model._keys_to_ignore_on_save or ())  # such as computed sinusoids
        missing = sorted(set(info["missing_keys"]) - never_saved)
        if missing:
            raise RequestError(
                f"`{self.directory}` lacks {len(missing)} tensors that `{kind.__name__}` "
                f"needs, such as `{missing[0]}`",
                "config.json and the weights may be of different models",
            )
        return model.eval()

    def check_finite(self, progress: Progress = silent) -> None:
        """Look at every stored weight.

        Raises:
            RequestError: one holds NaN or an infinity; its name and how many are said.
        """
        total = len(self.tensors)
        for done, (name, tensor) in enumerate(self._mapped()):
            progress("check weights", done, total, name)
            require_finite(name, tensor, f" in `{self.tensors[name].file}`")
        progress("check weights", total, total)


def open_source(
    model: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    weights: bool = True,
    trust_remote_code: bool = False,
) -> Source:
    """Open a checkpoint, checking all that can be checked without loading weights.

    Args:
        model: a local directory or a Hub id.
        revision: branch, tag or commit of a Hub repository.
        token: Hub access token.
        weights: whether weights are needed; False opens a config for training from scratch.
        trust_remote_code: run code that the checkpoint brings. Only if the user says so.

    Raises:
        RequestError: no such directory, no network, no or broken config.json, unknown architecture,
            foreign quantization, no weights, a missing, truncated, corrupt or unsafe weight file.
    """
    directory, commit = locate(
        model, revision=revision, token=token, weights=weights, code=trust_remote_code
    )
    config = read_config(directory, trust_remote_code)
    tensors = tensorfiles.stored_tensors(directory) if weights else {}
    if weights and not tensors:
        raise RequestError(
            f"`{directory}` has a config.json but no weights", _other_weights(directory)
        )
    return Source(str(model), directory, config, commit, tensors, trust_remote_code)


def _other_weights(directory: Path) -> str:
    """Return a hint that names weight files in a form that is not read."""
    weights = _OTHER_WEIGHTS | {".safetensors", ".bin"}
    other = sorted(path.name for path in directory.iterdir() if path.suffix in weights)
    if other:
        wanted = ", ".join(name for name in tensorfiles.WEIGHT_FILES if "index" not in name)
        return f"found {', '.join(f'`{name}`' for name in other[:4])}; needed: one of {wanted}"
    return "a config alone can only be trained from scratch, by the train-* commands"


def _tensor_digest(item: tuple[str, torch.Tensor]) -> bytes:
    """Return a line of a tensor's name, form and hash."""
    name, tensor = item
    own = hashlib.sha256()
    for piece in tensor.contiguous().reshape(-1).split(_CHUNK):
        own.update(memoryview(piece.view(torch.uint8).numpy()))
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {own.hexdigest()}\n".encode()


def require_finite(name: str, tensor: torch.Tensor, place: str = "") -> None:
    """Refuse a stored weight with a value that isn't finite; other dtypes than floats pass.

    Args:
        name: of the weight.
        tensor: the weight, on any device; a chunk of it is looked at at a time.
        place: where it lies, for the message, such as " in `model.safetensors`".

    Raises:
        RequestError: it holds NaN or an infinity; how many is said.
    """
    if not tensor.is_floating_point():
        return
    nan, infinite = _count_not_finite(tensor)
    if nan or infinite:
        raise RequestError(
            f"`{name}`{place} holds {nan} NaN and {infinite} infinite of {tensor.numel():,} values",
            "the checkpoint is damaged or diverged in training; take another one",
        )


def _count_not_finite(tensor: torch.Tensor) -> tuple[int, int]:
    """Return how many elements are NaN and how many infinite, a chunk in memory at a time."""
    nan = infinite = 0
    for piece in tensor.reshape(-1).split(_CHUNK):
        values = piece.float() if piece.element_size() == 1 else piece  # float8 knows no isfinite
        if not torch.isfinite(values).all():
            nan += int(values.isnan().sum())
            infinite += int(values.isinf().sum())
    return nan, infinite
