"""Compute: what a device does in half a layer, and how long it really took."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

import torch


class Compute(ABC):
    """`half_s` is what `half()` is to take; `busy_s` is what all halves since `begin` took."""

    def __init__(self) -> None:
        self.half_s = self.busy_s = 0.0

    def begin(self, half_s: float) -> None:
        """Before a forward."""
        self.half_s, self.busy_s = half_s, 0.0

    @abstractmethod
    def half(self) -> None:
        """Half a layer's compute."""

    @abstractmethod
    def finish(self) -> None:
        """Block until all is computed."""


class Slept(Compute):
    """On a CPU: sleeping leaves the cores to gloo, as a device does.

    What the CPU oversleeps counts as computed: a device would not wait for the CPU to wake up.
    """

    def half(self) -> None:
        if self.half_s:
            started = time.perf_counter()
            time.sleep(self.half_s)
            self.busy_s += time.perf_counter() - started

    def finish(self) -> None:
        return None


class Gemms(Compute):
    """On a GPU: products, as many as take the time when they run alone."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._a = torch.randn(2048, 2048, device=device).to(torch.bfloat16)
        self._run(10)
        self._one_s = min(self._run(200) / 200 for _ in range(5))

    def half(self) -> None:
        count = round(self.half_s / self._one_s)
        for _ in range(count):
            torch.mm(self._a, self._a)
        self.busy_s += count * self._one_s

    def finish(self) -> None:
        torch.cuda.synchronize(self._a.device)

    def _run(self, count: int) -> float:
        self.finish()
        started = time.perf_counter()
        for _ in range(count):
            torch.mm(self._a, self._a)
        self.finish()
        return time.perf_counter() - started
