"""Do something to a module as soon as somebody else imports it, and import nothing for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def after_import(name: str, act: Callable[[], None]) -> None:
    """Call `act` once module `name` is imported in this process: now, if it is already."""
    if sys.modules.get(name) is not None:
        act()
    else:
        sys.meta_path.insert(0, _Watcher(name, act))


class _Watcher(MetaPathFinder):
    """Finds nothing itself: it has the others find the module, and acts after it has run."""

    def __init__(self, name: str, act: Callable[[], None]) -> None:
        self._name = name
        self._act = act

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)  # the others are asked below
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Acting(spec.loader, self._act)
        return spec


class _Acting(Loader):
    """The module's own loader, and then the act."""

    def __init__(self, loader: Loader, act: Callable[[], None]) -> None:
        self._loader = loader
        self._act = act

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._act()

    def __getattr__(self, name: str) -> object:
        # Readers of sources and resources ask the loader for more than to load.
        return getattr(self._loader, name)
