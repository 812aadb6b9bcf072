"""Elsewhere: another process that shares something; and a clock on which it is late at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from typing import Any

FORK = multiprocessing.get_context("fork")


class Elsewhere:
    """A process that has done `work`, and stays until the end of the context."""

    def __init__(self, work: Callable[[], Any]) -> None:
        ours, theirs = FORK.Pipe()

        def run() -> None:
            kept = work()
            theirs.send("done")
            with suppress(EOFError):
                theirs.recv()
            del kept

        self._process, self._pipe = FORK.Process(target=run), ours
        self._process.start()
        theirs.close()
        assert ours.recv() == "done"

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send("end")
        self._process.join()


class Clock:
    """Every sleep takes an hour."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def monotonic(self) -> float:
        return self._now_s

    def sleep(self, _: float) -> None:
        self._now_s += 3600.0
