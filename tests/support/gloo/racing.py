"""A device whose two streams are threads that dawdle: what a GPU's streams may do, on the CPU.

The CPU gives work to both and runs ahead of them. `consumed` and `copied` are the two events of
the note [Two events a slot]; a test takes one away to see that it is missed.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch

from vllm_layershard.runtime.device import Device

MOST_DELAY_S = 0.002


class Stream:
    """Does one thing after another, each after a moment."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def give(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def dawdle(self) -> None:
        """Mostly not at all, sometimes for long."""
        time.sleep(self._draw.choice((0.0, 0.0, 0.3, 1.0)) * MOST_DELAY_S)

    def record(self) -> threading.Event:
        event = threading.Event()
        self.give(event.set)
        return event

    def _run(self) -> None:
        while True:
            work = self._work.get()
            self.dawdle()
            work()


class Racing(Device):
    backend = "gloo"

    def __init__(self, seed: int, *, consumed: bool = True, copied: bool = True) -> None:
        super().__init__(torch.device("cpu"))
        self.compute, self.side = Stream(2 * seed), Stream(2 * seed + 1)
        self._consumed, self._copied = consumed, copied

    def enqueue(self, work: Callable[[], None], end: Any = None) -> threading.Event:
        if self._consumed:
            self.side.give(self.compute.record().wait)
        self.side.give(work)
        return self.side.record()

    def join(self, event: threading.Event) -> None:
        if self._copied:
            self.compute.give(event.wait)

    def synchronize(self) -> None:
        self.compute.record().wait()
        self.side.record().wait()
