"""Beside: how long products take while a side stream moves bytes from before until after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Beside(NamedTuple):
    """`covered` says whether the movements began before the products and ended after them.

    Only then do the milliseconds mean anything. `moved_ms` is what all movements took.
    """

    products_ms: float
    moved_ms: float
    covered: bool


def beside(
    products: Callable[[], object],
    move: Callable[[], object],
    times: int,
    side: torch.cuda.Stream,
) -> Beside:
    """`move` so many times on the side stream, and the products once on the current one.

    A stream takes about a thousand pending operations before the CPU has to wait: let `times` be a
    few hundred at most, and a movement a graph where it is many copies.
    """
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        first.record()
        for _ in range(times):
            move()
        last.record()
    began.record()
    products()
    ended.record()
    torch.cuda.synchronize()
    covered = first.elapsed_time(began) > 0 and ended.elapsed_time(last) > 0
    return Beside(began.elapsed_time(ended), first.elapsed_time(last), covered)
