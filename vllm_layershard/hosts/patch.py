"""Patch: one symbol of a host that is replaced, with the reason and the condition to remove it."""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from vllm_layershard.errors import HostError
from vllm_layershard.hosts.after_import import after_import

_ORIGINAL = "__layershard_original__"

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own: with its format


def is_replaced(symbol: Any) -> bool:
    """Whether a patch has put this symbol where it is."""
    return hasattr(symbol, _ORIGINAL)


def lacking(host: str, symbol: str, versions: str) -> HostError:
    """What is raised where the host, which had the symbol in these versions, has it no more."""
    return HostError(
        f"{host} has no {symbol}: this version of vllm-layershard was written for {host} "
        f"{versions}; install one of these, or a newer vllm-layershard"
    )


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

    def install_on_import(self) -> None:
        """Replace the symbol once its module is imported: now, if it is already.

        Raises:
            HostError: this version of the host has no such module, or no such symbol in it. Of the
                symbol that is known only once the module is imported, and raised there.
        """
        self.require_module()
        after_import(self.module, self.install)

    def require_module(self) -> None:
        """Refuse a host without the module, which nobody would ever import. It is not imported.

        Raises:
            HostError: names it.
        """
        try:
            there = sys.modules.get(self.module) or find_spec(self.module)
        except ModuleNotFoundError:  # its package
            there = None
        if there is None:
            raise lacking(self.host, self.module, self.versions)

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
        owner = self._owner()
        # Every class has a `__call__` of its metaclass, and an `__init__` of object's.
        places = [each for each in getattr(owner, "__mro__", [owner]) if each is not object]
        if not any(self.attribute in vars(place) for place in places):
            raise lacking(self.host, self.symbol, self.versions)
        return getattr(owner, self.attribute)  # type: ignore[no-any-return]

    def is_installed(self) -> bool:
        """Whether the symbol is replaced in this process."""
        return is_replaced(getattr(self._owner(), self.attribute, None))

    def _owner(self) -> Any:
        try:
            module = importlib.import_module(self.module)
            return getattr(module, self.owner) if self.owner else module
        except (ImportError, AttributeError):
            where = f"{self.module}.{self.owner}"
            raise lacking(self.host, where, self.versions) from None


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
