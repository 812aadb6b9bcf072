"""SplitMlps: what a split of dense MLPs comes to; apart, because every sharding may have one."""

from __future__ import annotations

from typing import NamedTuple


class SplitMlps(NamedTuple):
    """The dense MLPs of one pipeline stage by the names of their linears; bytes are of one rank."""

    linears: tuple[str, ...]
    held_bytes: int
    saved_bytes: int

    @property
    def mlps(self) -> int:
        """How many: each has two linears."""
        return len(self.linears) // 2
