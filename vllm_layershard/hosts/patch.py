"""Patch: one symbol of a host that is replaced, with the reason and the condition to remove it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_layershard.errors import HostError

_ORIGINAL = "__layershard_original__"


@dataclass(frozen=True, slots=True)
class Patch:
    """Replace `module.owner.attribute` by `wrap(original)`; once, however often it is installed.

    `owner` is a class, or empty for a function of the module itself.
    """

    module: str
    owner: str
    attribute: str
    versions: str
    reason: str
    removal: str
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]]

    @property
    def symbol(self) -> str:
        """The dotted name of what is replaced."""
        return ".".join(filter(None, (self.module, self.owner, self.attribute)))

    def install(self) -> None:
        """Replace the symbol; nothing happens if it is replaced already.

        Raises:
            HostError: this version of the host has no such symbol.
        """
        owner = self._owner()
        original = getattr(owner, self.attribute, None)
        if original is None:
            raise HostError(
                f"vllm has no {self.symbol}: this version of vllm-layershard was written for vllm "
                f"{self.versions}; install one of these, or a newer vllm-layershard"
            )
        if hasattr(original, _ORIGINAL):
            return
        replacement = functools.wraps(original)(self.wrap(original))
        setattr(replacement, _ORIGINAL, original)
        setattr(owner, self.attribute, replacement)

    def is_installed(self) -> bool:
        """Whether the symbol is replaced in this process."""
        return hasattr(getattr(self._owner(), self.attribute, None), _ORIGINAL)

    def _owner(self) -> Any:
        try:
            module = importlib.import_module(self.module)
            return getattr(module, self.owner) if self.owner else module
        except (ImportError, AttributeError):
            raise HostError(
                f"vllm has no {self.module}.{self.owner}: this version of vllm-layershard was "
                f"written for vllm {self.versions}; install one of these, or a newer "
                "vllm-layershard"
            ) from None
