"""Bench: what one rank measures of its machine, together with the others.

Every rank does the same at the same time, as the ranks of a server do. Of the ranks the slowest
counts, of the rounds the quickest: what else runs on the machine only adds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist

_MIB = 1 << 20
_WINDOWS: Final = 6
_PASSES: Final = 3
_MAX_TRAIN: Final = 16


@dataclass(frozen=True, slots=True)
class Effort:
    """How large and how often. `width` of square products, `tokens` their rows; bytes; rounds."""

    width: int
    tokens: int
    copy_bytes: int
    sizes: tuple[int, ...]
    rounds: int
    seconds: float


def effort_for(device: str, quick: bool) -> Effort:
    """Enough for a steady figure on a device of this kind."""
    if device == "cpu":
        most = 23 if quick else 26
        sizes = tuple(1 << n for n in range(16, most + 1))
        return Effort(1024, 128, 32 * _MIB, sizes, 4 if quick else 8, 0.2 if quick else 0.6)
    sizes = tuple(1 << n for n in range(18, 28 if quick else 30))
    # Pieces of some 0.3 ms: far above the gap between two, far below the largest broadcast.
    return Effort(8192, 2048, 4096 * _MIB, sizes, 5 if quick else 15, 0.3 if quick else 1.0)


class Bench:
    """One rank's measurements; all ranks call the same methods in the same order."""

    def __init__(self, device: torch.device, effort: Effort) -> None:
        self._device = device
        self.effort = effort
        self._accelerator = None if device.type == "cpu" else getattr(torch, device.type)
        width, tokens = effort.width, effort.tokens
        self._x = torch.randn(tokens, width, device=device).to(torch.bfloat16)
        # More weights than a cache holds, as layer after layer has its own.
        self._weights = [
            torch.randn(width, width, device=device).to(torch.bfloat16) for _ in range(16)
        ]
        self._source = torch.ones(effort.copy_bytes, dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)
        self._pieces = 0

    def product(self) -> None:
        """One product."""
        self._pieces += 1
        torch.nn.functional.linear(self._x, self._weights[self._pieces % len(self._weights)])

    def narrow_product(self) -> None:
        """One product of a single row: what it takes is the reading of the weight."""
        self._pieces += 1
        torch.nn.functional.linear(self._x[:1], self._weights[self._pieces % len(self._weights)])

    def copy(self) -> None:
        """One copy of a piece of the memory."""
        self._pieces += 1
        size = self.effort.copy_bytes // 8
        start = self._pieces % 8 * size
        self._target[start : start + size].copy_(self._source[start : start + size])

    def alone(self, piece: Callable[[], None]) -> float:
        """Seconds of one piece, with no broadcast in flight."""
        self._timed(piece, 3)
        count = 1
        while self._timed(piece, count) < self.effort.seconds / 8:
            count *= 2
        count = int(self._slowest(count))
        return self._slowest(min(self._timed(piece, count) for _ in range(6)) / count)

    def broadcast(self, nbytes: int) -> float:
        """Seconds of one broadcast with no compute beside it.

        Of a train of them, each waited for, as a forward has them; each rank is the source in turn.
        """
        stack = self._stack(nbytes)
        self._train(stack, 2)
        length = int(min(_MAX_TRAIN, max(2, self.effort.seconds / 40 / self._train(stack, 1))))
        return min(self._train(stack, length) for _ in range(self.effort.rounds))

    def _train(self, stack: Sequence[torch.Tensor], length: int) -> float:
        length = int(self._slowest(length))
        started = time.perf_counter()
        for turn in range(length):
            self._start(stack, turn).wait()
            self._synchronize()
        return self._slowest((time.perf_counter() - started) / length)

    def _stack(self, nbytes: int) -> list[torch.Tensor]:
        """Two slots, and weights behind them: more than a cache holds, as layers have."""
        weights = max(1, min(_MAX_TRAIN, self.effort.copy_bytes // nbytes))
        return [
            torch.ones(nbytes, dtype=torch.uint8, device=self._device) for _ in range(2 + weights)
        ]

    def together(
        self, piece: Callable[[], None], piece_s: float, nbytes: int, broadcast_s: float
    ) -> tuple[float, float]:
        """By which shares a piece and a broadcast take longer while both run.

        Broadcasts follow one another, and between two looks at one a piece is computed.
        """
        stack = self._stack(nbytes)
        count = int(self._slowest(max(3, self.effort.seconds / 8 / broadcast_s)))
        windows = [self._window(piece, piece_s, stack, count, broadcast_s) for _ in range(_WINDOWS)]
        return min(windows, key=sum)

    def _window(
        self,
        piece: Callable[[], None],
        piece_s: float,
        stack: Sequence[torch.Tensor],
        count: int,
        broadcast_s: float,
    ) -> tuple[float, float]:
        dist.barrier()
        pieces = 0
        started = time.perf_counter()
        for turn in range(count):
            work = self._start(stack, turn)
            while not work.is_completed():
                piece()
                self._synchronize()
                pieces += 1
            work.wait()
        self._synchronize()
        took = time.perf_counter() - started
        slower_piece = took / max(pieces * piece_s, 1e-9) - 1
        slower_broadcast = took / (count * broadcast_s) - 1
        return self._slowest(max(0.0, slower_piece)), self._slowest(max(0.0, slower_broadcast))

    def _start(self, stack: Sequence[torch.Tensor], turn: int) -> Any:
        """From a weight of the rank whose turn it is, into a slot of each other."""
        owner = turn % dist.get_world_size()
        weight = 2 + turn % (len(stack) - 2)
        tensor = stack[weight if dist.get_rank() == owner else turn % 2]
        return dist.broadcast(tensor, src=owner, async_op=True)

    def _timed(self, piece: Callable[[], None], count: int) -> float:
        self._synchronize()
        started = time.perf_counter()
        for _ in range(count):
            piece()
        self._synchronize()
        return time.perf_counter() - started

    def _slowest(self, value: float) -> float:
        """The greatest value of all ranks."""
        held = torch.tensor([value], dtype=torch.float64 if not self._accelerator else torch.float)
        held = held.to(self._device)
        dist.all_reduce(held, op=dist.ReduceOp.MAX)
        return float(held.item())

    def _synchronize(self) -> None:
        """Block until the compute's stream is done; broadcasts have one of their own."""
        if self._accelerator is not None:
            self._accelerator.current_stream(self._device).synchronize()


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds, and the shares by which each side takes longer beside the other."""

    product_s: float
    narrow_product_s: float
    copy_s: float
    broadcast_s: tuple[float, ...]
    product_beside: tuple[float, float]
    copy_beside: tuple[float, float]


def run(bench: Bench, rank: int) -> Measured:
    """Measure everything several times; the first rank tells stderr how far it is."""
    return _merged([_pass(bench, rank, turn) for turn in range(_PASSES)])


def _pass(bench: Bench, rank: int, turn: int) -> Measured:
    """Measure everything once."""
    sizes = bench.effort.sizes

    def say(what: str) -> None:
        if rank == 0:
            print(f"calibrate: {turn + 1}/{_PASSES}: {what}", file=sys.stderr, flush=True)

    say("products and copies")
    product_s, copy_s = bench.alone(bench.product), bench.alone(bench.copy)
    narrow_product_s = bench.alone(bench.narrow_product)
    broadcast_s = []
    for nbytes in sizes:
        say(f"broadcasts of {nbytes:,} bytes")
        broadcast_s.append(bench.broadcast(nbytes))
    say("both at once")
    largest = (sizes[-1], broadcast_s[-1])
    return Measured(
        product_s,
        narrow_product_s,
        copy_s,
        tuple(broadcast_s),
        bench.together(bench.product, product_s, *largest),
        bench.together(bench.copy, copy_s, *largest),
    )


def _merged(passes: list[Measured]) -> Measured:
    """The least disturbed of each. A larger message takes no less time than a smaller one."""
    least = [min(times) for times in zip(*(one.broadcast_s for one in passes), strict=True)]
    return Measured(
        min(one.product_s for one in passes),
        min(one.narrow_product_s for one in passes),
        min(one.copy_s for one in passes),
        tuple(min(least[i:]) for i in range(len(least))),
        min((one.product_beside for one in passes), key=sum),
        min((one.copy_beside for one in passes), key=sum),
    )
