"""Tests and benchmarks on a GPU, with torch and nothing else installed.

    PYTHONPATH=.:tests/support python3 -m gpu tests
    PYTHONPATH=.:tests/support python3 -m gpu bench

Each part is a process of its own with a time limit. No part starts after minute 7, so that half an
hour on a rented machine is enough for both. Rows are JSON lines on stdout, written as they come.
"""

from __future__ import annotations

import time

BEGAN_S = time.monotonic()
"""When the command began: nothing of it is imported earlier, and torch takes its time."""
