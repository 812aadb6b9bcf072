"""Hybrid: gated delta nets in most layers, grouped-query attention in the others.

Qwen3-Next and Qwen3.5. Source: vLLM 0.32, model_executor/models/qwen3_next.py and qwen3_5.py, and
layers/mamba/gdn/qwen_gdn_linear_attn.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_layershard.models.blueprint import Moe, Work
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.families.gqa import GqaBlueprint
from vllm_layershard.models.kv_cache import LayerCache, StateCache
from vllm_layershard.models.operation import Batch
from vllm_layershard.models.quantization import Quantization
from vllm_layershard.models.shape import Shape, Vector, require_divisible

_STATES = (
    "the layers with linear attention keep a state of every sequence too, and vLLM pads both "
    "caches to pages of one size: a server holds fewer tokens than bytes over bytes a token"
)


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """Sizes of a gated delta net. `fused`: the checkpoint has its input linears in one part each.

    `state_dtype` is that of the recurrent state; the convolution's has the model's dtype.
    """

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    kernel: int
    fused: bool
    state_dtype: str

    @property
    def keys(self) -> int:
        """Width of all keys."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Width of all values."""
        return self.value_heads * self.value_dim


@dataclass(frozen=True, slots=True)
class HybridBlueprint:
    """A model of this family; implements `blueprint.Blueprint`.

    `full` says everything of the layers with attention and of all MLPs; `is_linear` marks the
    layers with a delta net.
    """

    full: GqaBlueprint
    net: DeltaNet
    is_linear: tuple[bool, ...]

    @property
    def layers(self) -> int:
        """Hidden layers."""
        return self.full.layers

    @property
    def stem(self) -> str:
        """The name of the list of decoder layers."""
        return self.full.stem

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.full.hidden

    @property
    def vocab(self) -> int:
        """Tokens."""
        return self.full.vocab

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding."""
        return self.full.tied

    @property
    def dtype(self) -> str:
        """Of what is not quantised."""
        return self.full.dtype

    @property
    def quantization(self) -> Quantization:
        """Of the checkpoint."""
        return self.full.quantization

    @property
    def moe(self) -> Moe | None:
        """Routed experts."""
        return self.full.moe

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be assumed."""
        return (*self.full.notes, _STATES)

    def check_split(self, deployment: Deployment) -> None:
        """Heads of both kinds, and MLPs."""
        self.full.check_split(deployment)
        heads = {
            "linear_num_key_heads": self.net.key_heads,
            "linear_num_value_heads": self.net.value_heads,
        }
        require_divisible(deployment.layout.tp, heads)

    def shapes(self, layer_id: int, deployment: Deployment) -> Iterator[Shape]:
        """The linears of one layer in forward order."""
        if self.is_linear[layer_id]:
            yield from self._net_shapes(deployment)
        else:
            yield from self.full.attention_shapes(deployment)
        yield from self.full.mlp_shapes(layer_id, deployment)

    def vectors(self, layer_id: int, deployment: Deployment) -> Iterator[Vector]:
        """Norms, and the delta net's own parameters."""
        n, tp = self.net, deployment.layout.tp
        yield Vector("norms", 2 * self.hidden, self.dtype)
        if not self.is_linear[layer_id]:
            yield from self.full.attention_vectors(deployment)
            return
        yield Vector("linear_attn.A_log", n.value_heads // tp, "float32")
        yield Vector("linear_attn.dt_bias", n.value_heads // tp, self.dtype)
        yield Vector("linear_attn.norm", n.value_dim, self.dtype)

    def cache(self, layer_id: int, deployment: Deployment) -> LayerCache:
        """Keys and values, or the states of the convolution and of the recurrence.

        Source: vLLM 0.32, layers/mamba/mamba_utils.py, `gated_delta_net_state_shape`.
        """
        if not self.is_linear[layer_id]:
            return self.full.cache(layer_id, deployment)
        n, tp = self.net, deployment.layout.tp
        convolution = (2 * n.keys + n.values) // tp * (n.kernel - 1) * DTYPE_BYTES[self.dtype]
        recurrence = n.value_heads // tp * n.value_dim * n.key_dim * DTYPE_BYTES[n.state_dtype]
        return StateCache(convolution + recurrence)

    def attention(self, layer_id: int, deployment: Deployment, batch: Batch) -> Work:
        """Attention, or an update and a read of each value head's state for every token."""
        if not self.is_linear[layer_id]:
            return self.full.attention(layer_id, deployment, batch)
        n, tp = self.net, deployment.layout.tp
        state = n.value_heads // tp * n.value_dim * n.key_dim
        sequences = batch.tokens if batch.decode else 1
        return Work(
            flops=2.0 * batch.tokens * 3 * state,
            moved_bytes=2.0 * sequences * state * DTYPE_BYTES[n.state_dtype],
        )

    def _net_shapes(self, deployment: Deployment) -> Iterator[Shape]:
        n, tp = self.net, deployment.layout.tp
        keys, values, heads = n.keys // tp, n.values // tp, n.value_heads // tp
        parts = (keys, keys, values, values)
        weights = (heads, heads)
        yield Shape(
            "linear_attn.in_proj_qkvz", (sum(parts),) if n.fused else parts, self.hidden, "out"
        )
        yield Shape(
            "linear_attn.in_proj_ba", (sum(weights),) if n.fused else weights, self.hidden, "out"
        )
        yield Shape(
            "linear_attn.conv1d",
            (2 * keys + values,),
            n.kernel,
            "out",
            quantisable=False,
            after="attention",
            convolution=True,
        )
        yield Shape("linear_attn.out_proj", (self.hidden,), values, "in")
