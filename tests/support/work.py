"""Work: what a call does, in numbers that are the same on a quick machine and on a slow one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any


class Work:
    """Counts, within `with`, what Python does and what is read.

    `steps` are lines, calls and returns: a loop takes one for each turn at least, also within a
    line. `bytes_read` are those of files and pipes. What C does within a line is not seen: of that,
    a test's limit against hangs ends what takes minutes.

    Raises:
        TooMuchError: from the line that is one step too many, so that an endless loop ends.
    """

    def __init__(self, most_steps: int) -> None:
        self.steps = 0
        self.bytes_read = 0
        self._most_steps = most_steps
        self._former: Callable[..., Any] | None = None

    def __enter__(self) -> Work:
        self._former = sys.gettrace()
        self.bytes_read = -bytes_read()
        sys.settrace(self._step)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._former)
        self.bytes_read += bytes_read()

    def _step(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        self.steps += 1
        if self.steps > self._most_steps:
            where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            raise TooMuchError(f"more than {self._most_steps:,} steps, the last of them at {where}")
        return self._step


class TooMuchError(BaseException):
    """The work exceeds its bound; no `except Exception` on the way keeps it."""


def bytes_read() -> int:
    """What this process has read since it began, as the kernel counts it."""
    return int(Path("/proc/self/io").read_text().partition("rchar:")[2].split()[0])
