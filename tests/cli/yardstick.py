"""A yardstick: what some plain Python takes on this machine, as busy as it is now."""

from __future__ import annotations

import time


def yard_seconds() -> float:
    """Seconds of processor time for three hundred thousand entries; a tenth on a quick machine."""
    started = time.process_time()
    entries = {str(i): [i] * 3 for i in range(300_000)}
    assert sum(map(len, entries)) > 0
    return time.process_time() - started
