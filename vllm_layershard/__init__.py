"""Layer sharding for vLLM: one copy of a linear weight per group, moved ahead of its use.

Importing this package imports neither torch nor vllm, nor any module of its own: a name is imported
when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vllm_layershard.version import __version__

__all__ = ["__version__"]

_HOMES: Final = {"__version__": "version"}
"""Each public name, and the module below this package that defines it."""


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    """The public names, and what a module has anyway."""
    return sorted({*globals(), *__all__})
