"""Blueprint: what a family says about one model. `model.py` makes a Model of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.kv_cache import LayerCache
from vllm_layershard.models.operation import Batch
from vllm_layershard.models.quantization import Quantization
from vllm_layershard.models.shape import Shape, Vector

MAX_LAYERS = 1024
"""More hidden layers than any model has."""

MAX_EXPERTS = 1 << 16
"""More routed experts in a layer than any model has."""


class Moe(NamedTuple):
    """The routed experts of every layer that `layers` marks: gated MLPs, up, gate and down.

    `name` is their module's within the layer, `bias` whether their products have one.
    """

    experts: int
    topk: int
    intermediate: int
    layers: tuple[bool, ...]
    name: str = "mlp.experts"
    bias: bool = False


class Work(NamedTuple):
    """What attention costs in one layer on one rank: products, and bytes of cache and activations.

    `flops` counts a multiply-add as two.
    """

    flops: float
    moved_bytes: float


class Blueprint(Protocol):
    """Sizes and names of one model, from its config.json; all per-rank ones as vLLM builds them."""

    def __hash__(self) -> int:
        """Blueprints are frozen: what is derived from one is kept."""

    @property
    def layers(self) -> int:
        """Hidden layers, without draft (MTP) layers."""

    @property
    def stem(self) -> str:
        """The name of the list of decoder layers: `model.layers`."""

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""

    @property
    def vocab(self) -> int:
        """Tokens, before padding."""

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding."""

    @property
    def dtype(self) -> str:
        """Of what is not quantised."""

    @property
    def quantization(self) -> Quantization:
        """Of the checkpoint."""

    @property
    def moe(self) -> Moe | None:
        """Routed experts, None in a dense model."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be assumed while reading the config."""

    def check_split(self, deployment: Deployment) -> None:
        """Refuse a layout that cannot split this model, other than for its experts and vocabulary.

        Raises:
            PlanError: names the size that does not divide.
        """

    def shapes(self, layer_id: int, deployment: Deployment) -> Iterator[Shape]:
        """The linears of one layer in forward order, as one rank holds them."""

    def vectors(self, layer_id: int, deployment: Deployment) -> Iterator[Vector]:
        """All other parameters of one layer, without its routed experts'."""

    def cache(self, layer_id: int, deployment: Deployment) -> LayerCache:
        """What the layer keeps of each token."""

    def attention(self, layer_id: int, deployment: Deployment, batch: Batch) -> Work:
        """What attention costs beside the linears that are not absorbed in it."""
