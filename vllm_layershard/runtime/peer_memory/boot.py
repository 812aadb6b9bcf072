"""The node's last boot, which tells nodes apart whatever they are called."""

from __future__ import annotations

from pathlib import Path


def boot_id() -> str:
    """The kernel's random name for it: the same in every process and container."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
