"""Registers what is ours with transformers, whichever of the two is imported first.

Imports neither torch nor transformers: `import compress` stays cheap, and where transformers comes
later, a finder at the head of `sys.meta_path` waits for the one module that keeps a registry (of
quantization methods, of model types), registers as soon as that has run, and takes itself away.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

REGISTRY = "transformers.quantizers.auto"


def install() -> None:
    """Register the format now if transformers' registry is loaded, else when it is; repeatable."""
    when_imported(REGISTRY, "register_quantizer", _register)


def when_imported(registry: str, ready: str, register: Callable[[], None]) -> None:
    """Call `register` now if a module of transformers is loaded, else when it is; repeatable.

    Args:
        registry: the module's name.
        ready: a name that it has once it has run.
        register: what to do then.
    """
    module = sys.modules.get(registry)
    if module is not None and hasattr(module, ready):
        register()
    elif not any(isinstance(f, RegistryFinder) and f.registry == registry for f in sys.meta_path):
        sys.meta_path.insert(0, RegistryFinder(registry, register))


class RegistryFinder(MetaPathFinder):
    """Finds one module as the other finders do, and acts once it has run."""

    def __init__(self, registry: str, register: Callable[[], None]) -> None:
        self.registry = registry
        self.register = register

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the registry's spec with a loader that registers our format afterwards."""
        if fullname != self.registry:
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
            self.register()

        loader.exec_module = exec_module


def _register() -> None:
    from compress.checkpoints.format import register

    register()
