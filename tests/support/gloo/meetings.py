"""Processes that meet nowhere but in the node's shared memory: each runs a function and stays."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from forked import CONTEXT, forked

DEADLINE_S = 60


class Guest:
    """A process that calls `work(*args)`, tells what it returned or raised, and lives on.

    A context: gone on exit, by SIGKILL.
    """

    def __init__(self, work: Callable[..., Any], *args: Any) -> None:
        self._told, told = CONTEXT.Pipe(duplex=False)
        self._process = forked(_stay, told, work, args, daemon=True)
        self._process.start()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def says(self) -> Any:
        """What `work` returned, or the error that it raised, as its type and text."""
        assert self._told.poll(DEADLINE_S), "it says nothing"
        return self._told.recv()

    def kill(self) -> None:
        """Without a chance to clean up."""
        self._process.kill()
        self._process.join()


def _stay(told: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        told.send(work(*args))
    except Exception as error:
        told.send(f"{type(error).__name__}: {error}")
    signal.pause()
