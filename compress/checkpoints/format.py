"""The quantization method `compress`, by which plain `from_pretrained` opens edited checkpoints.

`config.json` holds the edits:

    "quantization_config": {"quant_method": "compress", "version": 1,
                            "modules": {NAME: {"kind": …, …}}, "guard": [PARAMETER, …]}

Before weights are read each named module is swapped for the one that its edit makes; afterwards
every tensor of it must have been read, in the shape that the edit declares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from compress.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter

# Nothing else of transformers may be imported above: registration runs while transformers'
# modeling_utils is half-way through its own imports. What the hooks need they import themselves.

METHOD = "compress"
VERSION = 1


class CompressConfig(QuantizationConfigMixin):
    """The edits of a checkpoint, as config.json holds them.

    Args:
        modules: module name -> edit.
        version: of this format.
        guard: parameters stored with a leading axis of 1 (see `guard.py`).
        unknown: fields of later versions; kept.

    Raises:
        RequestError: the checkpoint was written by a later version.
    """

    def __init__(
        self,
        modules: Mapping[str, Mapping[str, Any]] | None = None,
        version: int = VERSION,
        guard: list[str] | None = None,
        **unknown: Any,
    ) -> None:
        if not isinstance(version, int) or version > VERSION:
            raise RequestError(
                f"this checkpoint has format version {version}, this package reads up to {VERSION}",
                "upgrade it: `pip install --upgrade compress`",
            )
        unknown.pop("quant_method", None)
        self.__dict__.update(unknown)  # to_dict is __dict__: keep it plain JSON
        self.quant_method: Any = METHOD
        self.version = version
        self.modules = {name: dict(fields) for name, fields in (modules or {}).items()}
        self.guard = list(guard or [])


class CompressQuantizer(HfQuantizer):
    """Makes the edits before weights are read, and checks afterwards that all were."""

    requires_calibration = True  # from_pretrained(dense, quantization_config=…) is refused
    is_trainable = True
    is_qat_trainable = True  # what lets transformers' Trainer in
    is_compileable = True

    quantization_config: CompressConfig

    def __init__(self, quantization_config: CompressConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._edited: list[str] = []
        self._guarded: list[str] = []
        self._conversions: list[WeightConverter] = []
        self._declared: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._dtype: torch.dtype | None = None

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Remember the dtype that was asked for."""
        self._dtype = dtype
        return dtype

    def _process_model_before_weight_loading(
        self,
        model: PreTrainedModel,
        **kwargs: Any,
    ) -> None:
        from compress.checkpoints import edits, guard, unpacking
        from compress.checkpoints.record import guarded_here, packed_here

        config = self.quantization_config
        edits.check(config.modules)
        names = edits.resolve(model, config.modules, foreign_heads=True)
        wanted = {names[n]: fields for n, fields in config.modules.items() if n in names}
        self._edited = edits.swap(model, wanted)
        self._guarded = guarded_here(model, config)
        self._conversions = guard.load_conversions(model, self._guarded)
        self._conversions += unpacking.load_conversions(model, packed_here(model, config))
        state = model.state_dict(keep_vars=True)
        self._declared = {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}

    def get_weight_conversions(self) -> list[WeightConverter]:
        """Return the converters that read the guarded and the packed weights."""
        return self._conversions

    def update_weight_conversions(
        self, weight_conversions: list[Any], model: PreTrainedModel | None = None
    ) -> list[Any]:
        """Put ours before the family's.

        At most one converter takes a name, and in transformers 5.17 a family's pattern
        for a weight also takes the packed tensors, whose names begin with it.
        """
        return [*self._conversions, *weight_conversions]

    def _process_model_after_weight_loading(
        self,
        model: PreTrainedModel,
        **kwargs: Any,
    ) -> PreTrainedModel:
        from compress.checkpoints.record import set_conversions

        state = model.state_dict(keep_vars=True)
        self._check_read(model, state)
        self._cast(model, state)
        set_conversions(model, getattr(model, "_weight_conversions", []), self.quantization_config)
        return model

    def _check_read(self, model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
        """Refuse an edited module of which a tensor is missing, or has another shape.

        transformers only warns of the first; 5.17 lets the second pass. A head that the class which
        wrote the checkpoint hadn't may be new, as in stock models.
        """
        edited = self._edited
        if type(model).__name__ not in (getattr(model.config, "architectures", None) or ()):
            base = {id(module) for module in model.base_model.modules()}
            edited = [name for name in edited if id(model.get_submodule(name)) in base]
        prefixes = tuple(f"{name}." for name in edited)
        for name, tensor in state.items():
            if not name.startswith(prefixes) and name not in self._guarded:
                continue
            if tensor.is_meta:  # offloaded to disk
                continue
            declared = self._declared[name][0] if name in self._declared else tensor.shape
            if tensor.shape != declared:
                raise RequestError(
                    f"`{name}` is {list(tensor.shape)} on disk, its edit declares {list(declared)}",
                    "config.json and the weights don't belong together: copy both again",
                )
            if not getattr(tensor, "_is_hf_initialized", False):
                raise RequestError(
                    f"the checkpoint lacks `{name}`, which belongs to an edited module",
                    "the weights are incomplete: copy or make them again",
                )

    def _cast(self, model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
        """Cast what 5.17 leaves in the dtype on disk: renamed and converted tensors."""
        plan = model._get_dtype_plan(self._dtype) if self._dtype is not None else {}
        for name, tensor in state.items():
            if name not in self._declared or tensor.is_meta or not tensor.is_floating_point():
                continue
            dtype = self._declared[name][1]
            for pattern, planned in plan.items():
                if re.search(pattern.replace("*", ".*"), name):
                    dtype = planned
            if tensor.dtype != dtype:
                tensor.data = tensor.data.to(dtype)

    def _dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        """Multiply low-rank modules out; refused where stock code can't hold the model."""
        from compress.checkpoints.export import to_stock

        to_stock(model)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Whether an edited model can be saved: always."""
        return True


def register() -> None:
    """Tell transformers of the method `compress`; repeatable."""
    if METHOD not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        auto.register_quantization_config(METHOD)(CompressConfig)
    if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantizer(METHOD)(CompressQuantizer)
