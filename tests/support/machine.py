"""What a machine may lack, and the marks of the tests that are left out there.

Everything but these runs everywhere. Where the suite runs before a landing there are root, Linux
and two cores, so that all of them run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

NEEDS_ROOT = pytest.mark.skipif(
    os.geteuid() != 0,
    # A file of another user, or a process number of one's own choice, cannot be had otherwise.
    reason="only root can become another user, and say which process number comes next",
)

NEEDS_LINUX = pytest.mark.skipif(
    sys.platform != "linux",
    # Elsewhere the package pins nothing: there is no behaviour to look at.
    reason="threads are pinned on Linux only",
)

NEEDS_TWO_CORES = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2,
    # With one there is no other core to which the side thread could be let go.
    reason="one core is all there is",
)

NEEDS_SMAPS = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(),
    # A kernel without CONFIG_PROC_PAGE_MONITOR keeps the flags of a mapping to itself.
    reason="the kernel does not tell the flags of a mapping",
)
