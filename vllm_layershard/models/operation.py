"""Operation: one piece of a layer's forward on one rank, and the batch that it computes."""

from __future__ import annotations

from typing import Literal, NamedTuple

Precision = Literal["fp8", "bf16"]
"""In which of a device's two rates an operation computes (float16 counts as bf16)."""


class Operation(NamedTuple):
    """One piece of a decoder layer's forward on one rank, in forward order.

    `linear` is the prefix of the linear that it runs, "" for what is none (attention, experts).
    `flops` counts a multiply-add as two; `moved_bytes` is what it reads and writes: weights,
    cache and activations.
    """

    linear: str
    flops: float
    moved_bytes: float
    precision: Precision


class Batch(NamedTuple):
    """What one rank computes in one forward.

    `tokens` new ones, each of which attends to `context` tokens on average. `decode`: of each
    sequence the token that was sampled last, and `drafted` tokens that the forward verifies.
    Source: vLLM 0.32, config/vllm.py, `uniform_decode_query_len`.
    """

    tokens: int
    context: float
    decode: bool
    drafted: int = 0

    @property
    def sequences(self) -> float:
        """Of a decode; not whole where the last sequence has fewer drafts."""
        return self.tokens / (1 + self.drafted)
