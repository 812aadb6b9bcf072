"""GQA: decoders with grouped-query attention and gated MLPs, dense or with routed experts.

Names and shapes as vLLM 0.32 builds them (`QKVParallelLinear`, `MergedColumnParallelLinear`,
`RowParallelLinear`); what the families differ in are the fields. A test builds vLLM's classes and
compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vllm_layershard.errors import PlanError
from vllm_layershard.models.blueprint import Moe, Work
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.families.mlp import gated_mlp
from vllm_layershard.models.kv_cache import HeadsCache
from vllm_layershard.models.operation import Batch
from vllm_layershard.models.quantization import Quantization
from vllm_layershard.models.shape import Shape, Vector, require_divisible


@dataclass(frozen=True, slots=True)
class Attention:
    """Sizes and names of the attention; `windows` per layer in tokens, None where it is full.

    `qk_norm`: a norm of one head's width for all heads, or of all heads together. `gated`: the
    queries' linear also makes a gate of the same width for the output.
    """

    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    name: str = "self_attn"
    qkv: str = "qkv_proj"
    out: str = "o_proj"
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["none", "head", "all"] = "none"
    sinks: bool = False
    gated: bool = False

    def kv_heads_on_rank(self, tp: int) -> int:
        """Fewer heads than ranks are replicated. Source: vLLM, layers/linear.py."""
        return max(1, self.kv_heads // tp)


@dataclass(frozen=True, slots=True)
class Router:
    """The linear that chooses experts; `correction_bias`: a float32 for each expert beside it."""

    name: str = "mlp.gate"
    dtype: str | None = None
    bias: bool = False
    quantisable: bool = False
    correction_bias: bool = False


@dataclass(frozen=True, slots=True)
class GqaBlueprint:
    """A model of these families; implements `blueprint.Blueprint`.

    `intermediate` is the dense layers' width, `shared_intermediate` that of all shared experts
    together, 0 without; `shared_gate`: a linear of one row weighs them; `shared_whole`: they are
    whole on every rank under sequence-parallel MoE.
    """

    hidden: int
    vocab: int
    dtype: str
    quantization: Quantization
    heads: Attention
    intermediate: int
    tied: bool = False
    mlp_bias: bool = False
    moe: Moe | None = None
    router: Router = Router()
    shared_intermediate: int = 0
    shared_name: str = "shared_experts"
    shared_gate: bool = False
    shared_whole: bool = False
    notes: tuple[str, ...] = ()
    stem: str = "model.layers"

    @property
    def layers(self) -> int:
        """Hidden layers."""
        return len(self.heads.windows)

    def check_split(self, deployment: Deployment) -> None:
        """Heads and MLPs; key-value heads divide the ranks where there are fewer."""
        tp, a = deployment.layout.tp, self.heads
        sizes = {"num_attention_heads": a.heads}
        if a.kv_heads >= tp:
            sizes["num_key_value_heads"] = a.kv_heads
        if self.moe is None or not all(self.moe.layers):
            sizes["intermediate_size"] = self.intermediate
        if self.shared_intermediate:
            sizes["the width of the shared experts"] = self.shared_intermediate
        require_divisible(tp, sizes)
        if a.kv_heads < tp and tp % a.kv_heads:
            raise PlanError(
                f"tp = {tp}: is no multiple of num_key_value_heads = {a.kv_heads}, which are "
                "fewer; choose one that is"
            )

    def shapes(self, layer_id: int, deployment: Deployment) -> Iterator[Shape]:
        """The linears of one layer in forward order."""
        yield from self.attention_shapes(deployment)
        yield from self.mlp_shapes(layer_id, deployment)

    def attention_shapes(self, deployment: Deployment) -> Iterator[Shape]:
        """Those of the attention."""
        a, tp = self.heads, deployment.layout.tp
        queries, keys = a.heads // tp * a.head_dim, a.kv_heads_on_rank(tp) * a.head_dim
        yield Shape(
            f"{a.name}.{a.qkv}",
            (queries * (2 if a.gated else 1), keys, keys),
            self.hidden,
            "out",
            bias=a.qkv_bias,
            after="attention",
        )
        yield Shape(f"{a.name}.{a.out}", (self.hidden,), queries, "in", bias=a.out_bias)

    def mlp_shapes(self, layer_id: int, deployment: Deployment) -> Iterator[Shape]:
        """Those of the dense MLP, or of the shared experts and the router."""
        tp = deployment.layout.tp
        if self.moe is None or not self.moe.layers[layer_id]:
            yield from gated_mlp("mlp", self.hidden, self.intermediate, tp, bias=self.mlp_bias)
            return
        block = self.moe.name.rpartition(".")[0]
        if self.shared_gate:
            yield Shape(f"{block}.shared_expert_gate", (1,), self.hidden, "none", quantisable=False)
        if self.shared_intermediate:
            yield from gated_mlp(
                f"{block}.{self.shared_name}",
                self.hidden,
                self.shared_intermediate,
                tp,
                whole=self.shared_whole and deployment.sequence_parallel_moe,
                bias=self.mlp_bias,
            )
        yield Shape(
            self.router.name,
            (self.moe.experts,),
            self.hidden,
            "none",
            quantisable=self.router.quantisable,
            bias=self.router.bias,
            dtype=self.router.dtype,
            after="experts",
        )

    def vectors(self, layer_id: int, deployment: Deployment) -> Iterator[Vector]:
        """Norms, sinks, and the router's correction bias."""
        yield Vector("norms", 2 * self.hidden, self.dtype)
        yield from self.attention_vectors(deployment)
        if self.router.correction_bias and self.moe is not None and self.moe.layers[layer_id]:
            yield Vector("correction_bias", self.moe.experts, "float32")

    def attention_vectors(self, deployment: Deployment) -> Iterator[Vector]:
        """Norms of queries and keys, and sinks."""
        a, tp = self.heads, deployment.layout.tp
        if a.qk_norm == "head":
            yield Vector("qk_norms", 2 * a.head_dim, self.dtype)
        elif a.qk_norm == "all":
            on_rank = a.heads // tp + a.kv_heads_on_rank(tp)
            yield Vector("qk_norms", on_rank * a.head_dim, self.dtype)
        if a.sinks:
            yield Vector("sinks", a.heads // tp, self.dtype)

    def cache(self, layer_id: int, deployment: Deployment) -> HeadsCache:
        """Keys and values of the heads on this rank."""
        a = self.heads
        heads = a.kv_heads_on_rank(deployment.layout.tp)
        return HeadsCache(heads, a.head_dim, a.head_dim, a.windows[layer_id])

    def attention(self, layer_id: int, deployment: Deployment, batch: Batch) -> Work:
        """Scores and weighted values of the heads on this rank, within the layer's window."""
        a, tp = self.heads, deployment.layout.tp
        window = a.windows[layer_id]
        context = batch.context if window is None else min(batch.context, float(window))
        width = a.heads // tp * a.head_dim
        cached = 2 * a.kv_heads_on_rank(tp) * a.head_dim * DTYPE_BYTES[self.dtype]
        rows = batch.tokens * context if batch.decode else batch.tokens
        return Work(
            flops=2.0 * batch.tokens * context * 2 * width,
            moved_bytes=rows * cached + 2.0 * batch.tokens * 2 * width,
        )
