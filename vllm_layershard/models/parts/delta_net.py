"""DeltaNet: a gated delta net, which keeps a state of each sequence and nothing of a token.

Source: vLLM 0.32, layers/mamba/gdn/qwen_gdn_linear_attn.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vllm_layershard.models.cache.kv_cache import StateCache
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.operation import Batch
from vllm_layershard.models.parts.attention import Work
from vllm_layershard.models.shape import Shape, Vector, per_rank


class DeltaNet(NamedTuple):
    """Heads and their widths. `fused`: the checkpoint has its input linears in one part each.

    `state_dtype` is that of the recurrent state; the convolution's has the model's dtype.
    """

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    kernel: int
    fused: bool
    state_dtype: str

    def shapes(self, hidden: int, tp: int) -> Iterator[Shape]:
        """Two input linears, the convolution and the output."""
        keys, values = self._widths(tp)
        heads = per_rank(self.value_heads, tp)
        parts: tuple[int, ...] = (keys, keys, values, values)
        weights: tuple[int, ...] = (heads, heads)
        if self.fused:
            parts, weights = (sum(parts),), (sum(weights),)
        yield Shape("linear_attn.in_proj_qkvz", parts, hidden, "out")
        yield Shape("linear_attn.in_proj_ba", weights, hidden, "out")
        yield Shape(
            "linear_attn.conv1d",
            (2 * keys + values,),
            self.kernel,
            "out",
            quantisable=False,
            after="attention",
            convolution=True,
        )
        yield Shape("linear_attn.out_proj", (hidden,), values, "in")

    def vectors(self, dtype: str, tp: int) -> Iterator[Vector]:
        """Decays, biases of the time step, and the output's norm."""
        heads = per_rank(self.value_heads, tp)
        yield Vector("linear_attn.A_log", heads, "float32")
        yield Vector("linear_attn.dt_bias", heads, dtype)
        yield Vector("linear_attn.norm", self.value_dim, dtype)

    def drafting(self, tokens: int) -> DeltaNet:
        """As it keeps its cache where so many tokens are drafted: the convolution's state grows.

        Source: vLLM 0.32, layers/mamba/mamba_utils.py, `gated_delta_net_state_shape`.
        """
        return self._replace(kernel=self.kernel + tokens)

    def cache(self, dtype: str, tp: int) -> StateCache:
        """The states of the convolution and of the recurrence.

        Source: vLLM 0.32, layers/mamba/mamba_utils.py, `gated_delta_net_state_shape`.
        """
        keys, values = self._widths(tp)
        convolution = (2 * keys + values) * (self.kernel - 1) * DTYPE_BYTES[dtype]
        return StateCache((convolution, self._state(tp) * DTYPE_BYTES[self.state_dtype]))

    def work(self, dtype: str, tp: int, batch: Batch) -> Work:
        """An update of each value head's state for every token; it is read once a sequence.

        It is written once too, and in a decode after each token: any draft may be the last that is
        accepted. Source: vLLM 0.32, third_party/flash_linear_attention/ops/fused_recurrent.py,
        `IS_SPEC_DECODING`.
        """
        states = batch.sequences + batch.tokens if batch.decode else 2
        return Work(
            flops=2.0 * batch.tokens * 3 * self._state(tp),
            moved_bytes=float(states) * self._state(tp) * DTYPE_BYTES[self.state_dtype],
        )

    def _widths(self, tp: int) -> tuple[int, int]:
        """All keys and all values of one rank."""
        keys, values = per_rank(self.key_heads, tp), per_rank(self.value_heads, tp)
        return keys * self.key_dim, values * self.value_dim

    def _state(self, tp: int) -> int:
        """Elements of the recurrent state of one rank."""
        return per_rank(self.value_heads, tp) * self.value_dim * self.key_dim
