"""Comparison: a checkpoint beside what the config says of its model, and where they disagree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vllm_layershard.models.checkpoint.files import Checkpoint


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A tensor, what the config makes of it, and what the files store."""

    tensor: str
    expected: str
    stored: str

    def __str__(self) -> str:
        return f"{self.tensor}: expected {self.expected}, stored {self.stored}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A checkpoint beside a model: `linears` has the stored bytes of each by prefix."""

    checkpoint: Checkpoint
    linears: Mapping[str, int]
    draft_bytes: int
    disagreements: tuple[Disagreement, ...]

    @property
    def said(self) -> str:
        """How much is stored, and whether it is what the config says."""
        found = len(self.disagreements)
        experts = any(".experts." in name for name in self.checkpoint.tensors) and not any(
            one.tensor.endswith(".experts") for one in self.disagreements
        )
        return (
            f"{_count(len(self.checkpoint.tensors), 'tensor')} of {self.checkpoint.nbytes:,} "
            f"bytes in {_count(len(self.checkpoint.files), 'file')}; the plan's linears "
            f"{f'disagree on {found}' if found else 'match them'}"
            f"{'; routed experts match' if experts else ''}"
        )

    def stored_bytes(self, prefixes: Iterable[str]) -> int:
        """Bytes that the files hold of these linears."""
        return sum(self.linears.get(prefix, 0) for prefix in prefixes)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
