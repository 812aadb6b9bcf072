"""GroupedAttention: query heads share key-value heads.

Names and shapes as vLLM 0.32 builds them (`QKVParallelLinear`, `RowParallelLinear`). A test builds
vLLM's classes and compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from vllm_layershard.models.cache.kv_cache import HeadsCache
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.operation import Batch
from vllm_layershard.models.parts.attention import Work
from vllm_layershard.models.shape import Shape, Vector, per_rank


class Heads(NamedTuple):
    """How many query and key-value heads there are, and the width of each."""

    query: int
    key_value: int
    dim: int

    def query_width(self, tp: int) -> int:
        """All query heads of one rank."""
        return per_rank(self.query, tp) * self.dim

    def key_value_heads(self, tp: int) -> int:
        """Those of one rank. Fewer than ranks are repeated. Source: vLLM 0.32, layers/linear.py."""
        return 1 if self.key_value < tp else per_rank(self.key_value, tp)


class GroupedAttention(NamedTuple):
    """`qkv` and `out` are the names of its linears in the layer; `window` in tokens, None: all.

    `qk_norm`: a norm of one head's width for all heads, or of all heads together. `gated`: the
    queries' linear also makes a gate of the same width for the output.
    """

    heads: Heads
    window: int | None = None
    qkv: str = "self_attn.qkv_proj"
    out: str = "self_attn.o_proj"
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["none", "head", "all"] = "none"
    sinks: bool = False
    gated: bool = False

    def shapes(self, hidden: int, tp: int) -> Iterator[Shape]:
        """Queries, keys and values in one linear, and the output."""
        queries = self.heads.query_width(tp)
        keys = self.heads.key_value_heads(tp) * self.heads.dim
        outs = (queries * (2 if self.gated else 1), keys, keys)
        yield Shape(self.qkv, outs, hidden, "out", bias=self.qkv_bias, after="attention")
        yield Shape(self.out, (hidden,), queries, "in", bias=self.out_bias)

    def vectors(self, dtype: str, tp: int) -> Iterator[Vector]:
        """Norms of queries and keys, and sinks."""
        heads = self.heads
        if self.qk_norm == "head":
            yield Vector("qk_norms", 2 * heads.dim, dtype)
        elif self.qk_norm == "all":
            keys = heads.key_value_heads(tp) * heads.dim
            yield Vector("qk_norms", heads.query_width(tp) + keys, dtype)
        if self.sinks:
            yield Vector("sinks", per_rank(heads.query, tp), dtype)

    def drafting(self, tokens: int) -> GroupedAttention:
        """As it is: what it keeps of a token is the same."""
        return self

    def cache(self, dtype: str, tp: int) -> HeadsCache:
        """Keys and values of the heads on this rank."""
        heads, dim = self.heads.key_value_heads(tp), self.heads.dim
        return HeadsCache(heads, dim, dim, window=self.window)

    def work(self, dtype: str, tp: int, batch: Batch) -> Work:
        """Scores and weighted values of the heads on this rank, within the window.

        A sequence's drafts read the cache once, together.
        """
        context = batch.context
        if self.window is not None:
            context = min(context, float(self.window))
        width = self.heads.query_width(tp)
        cached = 2 * self.heads.key_value_heads(tp) * self.heads.dim * DTYPE_BYTES[dtype]
        rows = batch.sequences * context if batch.decode else batch.tokens
        return Work(
            flops=2.0 * batch.tokens * context * 2 * width,
            moved_bytes=rows * cached + 2.0 * batch.tokens * 2 * width,
        )
