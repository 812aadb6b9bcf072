"""Attention: what every kind of attention says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from vllm_layershard.models.cache.kv_cache import AttentionCache
from vllm_layershard.models.operation import Batch
from vllm_layershard.models.shape import Shape, Vector


class Work(NamedTuple):
    """What an attention costs on one rank: products, and bytes of cache and activations.

    `flops` counts a multiply-add as two.
    """

    flops: float
    moved_bytes: float


class Attention(Protocol):
    """One attention of a decoder layer, as one of `tp` ranks holds and runs it. Frozen.

    `hidden` is the width of the residual stream, `dtype` that of what is not quantised. `tp`
    divides every size that the attention splits: the blueprint's `split` names them.
    """

    def shapes(self, hidden: int, tp: int) -> Iterator[Shape]:
        """Its linears in forward order. One is marked: the attention itself runs after it."""

    def vectors(self, dtype: str, tp: int) -> Iterator[Vector]:
        """Its other parameters."""

    def drafting(self, tokens: int) -> Attention:
        """As it keeps its cache where so many tokens are drafted in a step."""

    def cache(self, dtype: str, tp: int) -> AttentionCache:
        """What it keeps of each token and of each sequence."""

    def work(self, dtype: str, tp: int, batch: Batch) -> Work:
        """What it costs beside its linears, but for those that are absorbed in it."""
