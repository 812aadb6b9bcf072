"""Capacity: how many KV-cache tokens a deployment holds, with and without sharding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vllm_layershard.errors import HardwareError
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.models import Deployment, Model
from vllm_layershard.plan import stage_layers

UTILIZATION: Final = 0.92
"""The share of the memory that vLLM takes. Source: vLLM 0.32, config/cache.py, default of
`gpu_memory_utilization`."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one deployment holds; per-rank figures are those of the rank with least room.

    `engines` have a KV cache of their own each, of `engine_tokens`. Activations, graphs and what
    the driver takes are not counted, so that a server holds somewhat fewer.
    """

    weight_bytes: int
    room_bytes: int
    engines: int
    engine_tokens: int

    @property
    def tokens(self) -> int:
        """KV-cache tokens of the whole deployment."""
        return self.engines * self.engine_tokens


def capacity(
    model: Model,
    deployment: Deployment,
    hardware: Hardware,
    saved_bytes: Callable[[int], int],
    kv_cache_dtype: str,
    utilization: float = UTILIZATION,
) -> Capacity:
    """Count it. `saved_bytes(rank)` is what sharding saves on a global rank.

    Every data-parallel rank is an engine; the ranks of one share each token's cache by heads and
    layers, so that an engine holds what its tightest rank does.

    Raises:
        HardwareError: the hardware's memory is not known.
    """
    layout = deployment.layout
    if hardware.memory_bytes is None:
        raise HardwareError(
            f"--hardware {hardware.name}: its memory is not known; give it in a profile "
            "(--hardware FILE.json)"
        )
    budget = int(hardware.memory_bytes.value * utilization)
    stages = stage_layers(model.num_layers, layout.pp)
    tightest: tuple[int, int, int] | None = None
    for rank in range(layout.world_size):
        held = model.weight_bytes(deployment, rank).total - saved_bytes(rank)
        per_token = model.kv_bytes_per_token(
            kv_cache_dtype, stages[layout.stage_of(rank)], deployment
        )
        tokens = max(0, budget - held) // per_token
        if tightest is None or tokens < tightest[0]:
            tightest = (tokens, held, budget - held)
    assert tightest is not None, "a deployment has a rank"
    tokens, held, room = tightest
    return Capacity(weight_bytes=held, room_bytes=room, engines=layout.dp, engine_tokens=tokens)
