"""LatentAttention: multi-head latent (MLA), dense or over the tokens that an indexer chooses.

Names, shapes and dtypes as vLLM 0.32 builds them: model_executor/models/deepseek_v2.py, and
models/deepseek_v32/ for the architectures with sparse attention on CUDA. A test builds those
classes and compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vllm_layershard.models.cache.kv_cache import LatentCache
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.operation import Batch
from vllm_layershard.models.parts.attention import Work
from vllm_layershard.models.shape import Shape, Vector, per_rank


class Indexer(NamedTuple):
    """The indexer of sparse attention (DSA): it chooses the tokens to attend to."""

    heads: int
    dim: int


class LatentAttention(NamedTuple):
    """Sizes in elements, named as in config.json without the common words.

    `name`: its module in the layer. `q_lora` is None where queries are not compressed. `topk`: the
    tokens that an indexer chooses, None in dense attention. `indexer` is None where the layer
    takes over another layer's choice. `partial`: tensor-parallel ranks' sums are added up behind
    the output, by its layer.
    """

    name: str
    heads: int
    q_lora: int | None
    kv_lora: int
    nope: int
    rope: int
    v: int
    topk: int | None = None
    indexer: Indexer | None = None
    partial: bool = False

    def shapes(self, hidden: int, tp: int) -> Iterator[Shape]:
        """Down to the latents, up to the heads, the indexer's, and the output."""
        name, heads = self.name, per_rank(self.heads, tp)
        queries, latent = heads * (self.nope + self.rope), self.kv_lora + self.rope
        if self.q_lora is not None:
            yield Shape(f"{name}.fused_qkv_a_proj", (self.q_lora, latent), hidden, "none")
            yield Shape(f"{name}.q_b_proj", (queries,), self.q_lora, "out")
        else:
            yield Shape(f"{name}.kv_a_proj_with_mqa", (latent,), hidden, "none")
            yield Shape(f"{name}.q_proj", (queries,), hidden, "out")
        if self.indexer is not None:
            assert self.q_lora is not None, "its reader checks it"
            dim, index_heads = self.indexer.dim, self.indexer.heads
            keys = f"{name}.indexer.wk_weights_proj"
            yield Shape(keys, (dim, index_heads), hidden, "none", quantisable=False)
            yield Shape(f"{name}.indexer.wq_b", (index_heads * dim,), self.q_lora, "none")
        yield Shape(
            f"{name}.kv_b_proj",
            (heads * (self.nope + self.v),),
            self.kv_lora,
            "out",
            after="attention",
            absorbed=True,
        )
        yield Shape(f"{name}.o_proj", (hidden,), heads * self.v, "in", partial=self.partial)

    def vectors(self, dtype: str, tp: int) -> Iterator[Vector]:
        """Norms of the latents, and of the indexer's key."""
        yield Vector(f"{self.name}.norms", (self.q_lora or 0) + self.kv_lora, dtype)
        if self.indexer is not None:
            yield Vector(f"{self.name}.indexer.k_norm", 2 * self.indexer.dim, "float32")

    def drafting(self, tokens: int) -> LatentAttention:
        """As it is: what it keeps of a token is the same."""
        return self

    def cache(self, dtype: str, tp: int) -> LatentCache:
        """The latent; in sparse models also the indexer's key where the layer has one."""
        indexer_dim = self.indexer.dim if self.indexer is not None else 0
        return LatentCache(self.kv_lora, self.rope, self.topk is not None, indexer_dim)

    def work(self, dtype: str, tp: int, batch: Batch) -> Work:
        """Over full heads in a dense prefill, over the latent else; the indexer over all.

        A sequence's drafts read the cache once, together. Where each token chooses what it attends
        to, each reads its own.
        """
        heads = per_rank(self.heads, tp)
        latent = self.kv_lora + self.rope
        context, flops = batch.context, 0.0
        if self.indexer is not None:
            flops += 2.0 * batch.tokens * context * self.indexer.heads * self.indexer.dim
        if self.topk is not None:
            context = min(context, float(self.topk))
        over_latent = batch.decode or self.topk is not None
        width = latent + self.kv_lora if over_latent else self.nope + self.rope + self.v
        readers = batch.tokens if self.topk is not None else batch.sequences
        rows = readers * context if batch.decode else batch.tokens
        return Work(
            flops=flops + 2.0 * batch.tokens * context * heads * width,
            moved_bytes=rows * latent * DTYPE_BYTES[dtype]
            + 2.0 * batch.tokens * heads * (self.nope + self.rope + self.v),
        )
