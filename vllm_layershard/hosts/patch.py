"""Patch: one symbol of a host that is replaced, with the reason and the condition to remove it."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vllm_layershard.errors import HostError

_ORIGINAL = "__layershard_original__"

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own: with its format


def is_replaced(symbol: Any) -> bool:
    """Whether a patch has put this symbol where it is."""
    return hasattr(symbol, _ORIGINAL)


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
    def host(self) -> str:
        """The package that has it, whose versions `versions` are."""
        return self.module.partition(".")[0]

    @property
    def symbol(self) -> str:
        """The dotted name of what is replaced."""
        return ".".join(filter(None, (self.module, self.owner, self.attribute)))

    def install(self) -> None:
        """Replace the symbol; nothing happens if it is replaced already.

        Raises:
            HostError: this version of the host has no such symbol.
        """
        owner, original = self._owner(), self.original()
        if not is_replaced(original):
            setattr(owner, self.attribute, self._replacement(original))

    @contextmanager
    def in_force(self, owner: Any) -> Iterator[None]:
        """Replace the symbol while entered, of `owner`: a class that stands for the patch's own.

        Afterwards the owner is as it was, also where it inherits the symbol.

        Raises:
            HostError: this version of the host has no such symbol.
        """
        self.original()
        original = getattr(owner, self.attribute)
        is_its_own = self.attribute in vars(owner)
        setattr(owner, self.attribute, self._replacement(original))
        try:
            yield
        finally:
            if is_its_own:
                setattr(owner, self.attribute, original)
            else:
                delattr(owner, self.attribute)

    def _replacement(self, original: Callable[..., Any]) -> Callable[..., Any]:
        replacement = functools.wraps(original)(self.wrap(original))
        setattr(replacement, _ORIGINAL, original)
        return replacement

    def original(self) -> Callable[..., Any]:
        """What stands under the symbol now.

        Raises:
            HostError: nothing does.
        """
        found = getattr(self._owner(), self.attribute, None)
        if found is None:
            raise HostError(
                f"{self.host} has no {self.symbol}: this version of vllm-layershard was written "
                f"for {self.host} {self.versions}; install one of these, or a newer vllm-layershard"
            )
        return found  # type: ignore[no-any-return]

    def is_installed(self) -> bool:
        """Whether the symbol is replaced in this process."""
        return is_replaced(getattr(self._owner(), self.attribute, None))

    def _owner(self) -> Any:
        try:
            module = importlib.import_module(self.module)
            return getattr(module, self.owner) if self.owner else module
        except (ImportError, AttributeError):
            raise HostError(
                f"{self.host} has no {self.module}.{self.owner}: this version of vllm-layershard "
                f"was written for {self.host} {self.versions}; install one of these, or a newer "
                "vllm-layershard"
            ) from None


_warned: set[str] = set()


def install_or_warn(patch: Patch, feature: str) -> None:
    """Install a patch of a feature that nobody may have asked for: what it lacks is warned of once.

    A process that asked for nothing must not end for it.
    """
    try:
        patch.install()
    except HostError as error:
        if patch.symbol not in _warned:
            _warned.add(patch.symbol)
            logger.warning("%s is not available: %s", feature[0].upper() + feature[1:], error)
