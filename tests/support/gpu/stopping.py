"""Stopping: a signal that asks a run to end is noted, and the run ends itself in order."""

from __future__ import annotations

import signal
from typing import Any, Final

_SIGNALS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Stopping:
    """While entered, the first of these signals is noted in `by`, and none ends the process.

    One that is ignored at entry stays ignored: `nohup` has SIGHUP so, and `&` of a script SIGINT.
    """

    def __init__(self) -> None:
        self.by: str | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stopping:
        heeded = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        self._former = {each: signal.signal(each, self._note) for each in heeded}
        return self

    def __exit__(self, *raised: object) -> None:
        for each, handler in self._former.items():
            signal.signal(each, handler)

    def __call__(self) -> bool:
        """Whether the run is to end."""
        return self.by is not None

    def _note(self, number: int, frame: object) -> None:
        self.by = self.by or signal.Signals(number).name
