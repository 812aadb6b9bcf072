"""Work that may never end, for which a caller waits no longer than a bound."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

_T = TypeVar("_T")


def bounded(work: Callable[[], _T], bound_s: float) -> _T:
    """What `work` returns or raises, from a thread of its own.

    A store whose holder is stopped never answers, not even late. The thread is then left to itself.

    Raises:
        RuntimeError: it did not end within `bound_s` seconds.
    """
    ended: SimpleQueue[tuple[_T | None, Exception | None]] = SimpleQueue()

    def run() -> None:
        try:
            ended.put((work(), None))
        except Exception as error:
            ended.put((None, error))

    threading.Thread(target=run, name="layershard-bounded", daemon=True).start()
    try:
        result, error = ended.get(timeout=bound_s)
    except Empty:
        raise RuntimeError(f"no answer within {bound_s:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
