"""A library that is imported when it is used first: `import torch` costs a second, and most recipes need none of it.

`defer` puts an empty module in its place. The first access to an attribute, a submodule or a name of
``from LIBRARY import NAME`` included, runs the library in that very module. It is an ordinary one from then on.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


class _Deferred(ModuleType):
    """Holds its name, its file and its spec, which importing needs, and nothing else."""

    def __getattr__(self, name: str) -> Any:
        if not _run(self):  # read by the library itself, which has no such name yet
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self, name)


def _run(library: _Deferred) -> bool:
    """Run the library unless it has been; False where it is being run by this very thread."""
    values, spec = library.__dict__, library.__spec__
    assert spec is not None and spec.loader is not None, "`defer` found both"
    with values["_lock"]:
        if "_running" in values:
            return False
        if type(library) is _Deferred:
            values["_running"] = True
            try:
                spec.loader.exec_module(library)
                library.__class__ = ModuleType  # type: ignore[assignment]
            finally:
                del values["_running"]
        return True


class _Submodules(MetaPathFinder):
    """Runs the library where a submodule of it is imported first; what it imports itself is not run twice."""

    def __init__(self, library: _Deferred) -> None:
        self.library = library

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if type(self.library) is not _Deferred or not name.startswith(f"{self.library.__name__}."):
            return None
        module = sys.modules.get(name) if _run(self.library) else None
        if module is None or module.__spec__ is None:
            return None
        spec = copy.copy(module.__spec__)
        spec.loader, module.__spec__ = _Loaded(module), spec  # importing prefers the module's own to what is returned
        return spec


class _Loaded(Loader):
    """Stands for a submodule that is there by now."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


def defer(library: str) -> None:
    """Import a library not before it is used; nothing happens where it is imported already, or not installed."""
    spec = None if library in sys.modules else importlib.util.find_spec(library)
    if spec is None or spec.loader is None or spec.submodule_search_locations is None:
        return
    module = _Deferred(library)
    module.__dict__.update(
        __spec__=spec,
        __file__=spec.origin,
        __loader__=spec.loader,
        __package__=library,
        __path__=spec.submodule_search_locations,
        _lock=threading.RLock(),
    )
    sys.modules[library] = module
    sys.meta_path.insert(0, _Submodules(module))


def without_gradient(function: Function) -> Function:
    """`torch.no_grad()` around a function; torch is needed when it is called, not where it is defined."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        import torch

        with torch.no_grad():
            return function(*arguments, **options)

    return cast(Function, call)
