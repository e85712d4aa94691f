"""Registers the checkpoint format with transformers, whichever of the two is imported first.

Imports neither torch nor transformers: `import compress` stays cheap, and where transformers comes
later, a finder at the head of `sys.meta_path` waits for the one module that keeps the registry of
quantization methods, registers as soon as that has run, and takes itself away.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

REGISTRY = "transformers.quantizers.auto"


def install() -> None:
    """Register the format now if transformers' registry is loaded, else when it is; repeatable."""
    registry = sys.modules.get(REGISTRY)
    if registry is not None and hasattr(registry, "register_quantizer"):
        _register()
    elif not any(isinstance(finder, RegistryFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, RegistryFinder())


class RegistryFinder(MetaPathFinder):
    """Finds one module as the other finders do, and acts once it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the registry's spec with a loader that registers our format afterwards."""
        if fullname != REGISTRY:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find and finder is not self else None
            if spec is not None and spec.loader is not None:
                self._follow(spec.loader)
                return spec
        return None

    def _follow(self, loader: Any) -> None:
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()

        loader.exec_module = exec_module


def _register() -> None:
    from compress.checkpoints.format import register

    register()
