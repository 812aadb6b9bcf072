"""Running: a call in a thread of its own, given up on after so many seconds.

The threads are daemons: what was given up on ends with the process at the latest.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class GivenUpError(TimeoutError):
    """A call has not ended in its time; it runs on. The message holds nothing of the call."""


class Running(Generic[T]):
    """A call that has been started."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._ended: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._ended.put(([self._work()], None))
        except BaseException as error:
            self._ended.put(([], error))

    def result(self, seconds: float) -> T:
        """What it returns, once.

        Raises:
            GivenUpError: it has not ended within so many seconds.
            BaseException: what it raised.
        """
        try:
            results, error = self._ended.get(timeout=max(0.0, seconds))
        except Empty:
            raise GivenUpError(f"no whole answer within {seconds:.0f} seconds") from None
        if error is not None:
            raise error
        return results[0]


def in_order(calls: Iterable[Callable[[], T]], at_once: int, until: float) -> Iterator[T]:
    """What calls return, in their order, while at most `at_once` of them run.

    Raises:
        GivenUpError: the next one has not ended at `until`, a time of `time.monotonic`.
        BaseException: what the next one raised.
    """
    waiting = iter(calls)
    running = deque(Running(call) for call in islice(waiting, at_once))
    while running:
        result = running.popleft().result(until - time.monotonic())
        running.extend(Running(call) for call in islice(waiting, 1))
        yield result
