"""Model: what the planner knows of one model, whatever its family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from vllm_layershard.models.deployment import Deployment
from vllm_layershard.plan import Linear

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

    `tokens` new ones, each of which attends to `context` tokens on average. `decode`: one new
    token a sequence, so that `tokens` is the number of sequences.
    """

    tokens: int
    context: float
    decode: bool


class WeightBytes(NamedTuple):
    """Bytes that one rank holds after loading, without layer sharding."""

    embedding: int
    head: int
    linears: int
    experts: int
    norms: int
    derived: int
    """What vLLM computes from the weights at load and keeps beside them (see each family)."""

    @property
    def total(self) -> int:
        """The sum."""
        parts = (self.embedding, self.head, self.linears, self.experts, self.norms, self.derived)
        return sum(parts)


class Model(Protocol):
    """One model, from its config.json."""

    @property
    def name(self) -> str:
        """What the user may call it."""

    @property
    def source(self) -> str:
        """Where its config.json came from."""

    @property
    def architecture(self) -> str:
        """The first entry of `architectures`."""

    @property
    def num_layers(self) -> int:
        """Hidden layers, without draft (MTP) layers."""

    @property
    def dtype(self) -> str:
        """What is not quantised: `bfloat16` or `float16`."""

    @property
    def quantization(self) -> str:
        """`none`, or the name of the method."""

    @property
    def is_moe(self) -> bool:
        """Whether data-parallel ranks run in lockstep (dense replicas are independent)."""

    @property
    def experts(self) -> int:
        """Routed experts of a layer; 0 if there are none."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be assumed while reading the config."""

    def linears(self, deployment: Deployment) -> tuple[Linear, ...]:
        """Every linear of every hidden layer, as one rank holds it.

        Raises:
            PlanError: this layout cannot split the model.
        """

    def weight_bytes(self, deployment: Deployment, rank: int) -> WeightBytes:
        """Bytes of one global rank."""

    def cache_dtype(self, kv_cache_dtype: str) -> str:
        """What `auto` comes to; every other dtype as it is."""

    def kv_bytes_per_token(
        self, kv_cache_dtype: str, layers: Sequence[int], deployment: Deployment
    ) -> int:
        """Cache bytes of one token in these layers, on one rank."""

    def state_bytes_per_sequence(self, layers: Sequence[int], deployment: Deployment) -> int:
        """Bytes that these layers keep of each sequence on one rank, however long it is."""

    def operations(
        self, layer_id: int, deployment: Deployment, batch: Batch
    ) -> tuple[Operation, ...]:
        """The work of one layer, in forward order."""
