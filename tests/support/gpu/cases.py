"""Cases: what a function is called with and how many GPUs it needs, said without pytest.

pytest reads the same (tests/gpu/conftest.py), so that each function is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


class Axis(NamedTuple):
    """Names of arguments, and the values that they take together."""

    names: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]


def cases(names: str, values: Sequence[Any]) -> Callable[[_F], _F]:
    """Call the function once for each of the values, as pytest's `parametrize` does."""
    split = tuple(name.strip() for name in names.split(","))
    rows = tuple((value,) if len(split) == 1 else tuple(value) for value in values)

    def mark(function: _F) -> _F:
        function.axes = (*axes_of(function), Axis(split, rows))  # type: ignore[attr-defined]
        return function

    return mark


def needs(gpus: int) -> Callable[[_F], _F]:
    """How many GPUs the function needs; one, unless it says otherwise."""

    def mark(function: _F) -> _F:
        function.gpus = gpus  # type: ignore[attr-defined]
        return function

    return mark


def apart(function: _F) -> _F:
    """Give each case a process of its own, also where the one before passed: it leaves a mess."""
    function.apart = True  # type: ignore[attr-defined]
    return function


def is_apart(function: Callable[..., Any]) -> bool:
    """What `apart` has said of it."""
    return getattr(function, "apart", False)


def axes_of(function: Callable[..., Any]) -> tuple[Axis, ...]:
    """What `cases` has said of it."""
    return getattr(function, "axes", ())


def gpus_of(function: Callable[..., Any]) -> int:
    """What `needs` has said of it."""
    return getattr(function, "gpus", 1)


def calls_of(function: Callable[..., Any]) -> list[dict[str, Any]]:
    """The arguments of each call, in order."""
    axes = axes_of(function)
    return [
        {
            name: value
            for axis, row in zip(axes, rows, strict=True)
            for name, value in zip(axis.names, row, strict=True)
        }
        for rows in product(*(axis.values for axis in axes))
    ]


def lacking(needed: int, present: int | None) -> str | None:
    """Why a function that needs so many GPUs cannot run beside those present; None if it can.

    Where nobody knows how many are present, a function that needs one is tried.
    """
    if present is None:
        return None if needed == 1 else f"needs {needed} GPUs, and nobody knows how many are here"
    if needed <= present:
        return None
    return "needs a CUDA device" if present == 0 else f"needs {needed} GPUs, and {present} is here"
