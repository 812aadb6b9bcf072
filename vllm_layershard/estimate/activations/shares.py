"""By how much a phase gets longer whose activations move."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_layershard.estimate.activations.clock import clock_of
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.outcome import PhaseName
from vllm_layershard.models import Batch, Sharding
from vllm_layershard.plan.move import move_rule


def shares_of(
    sharding: Sharding, hardware: Hardware, batches: Mapping[PhaseName, Batch]
) -> dict[PhaseName, float | None]:
    """Of each phase whose activations move by the plan's rule, a share of its compute.

    None: the hardware lacks a number. Phases that move weights are left out.

    Raises:
        PlanError: ranks that pull from each other lie on several nodes.
    """
    rule = move_rule(sharding.config)
    moved = {name: one for name, one in batches.items() if not rule.moves_weights([one.tokens])}
    if not moved or not sharding.moves:
        return {}
    clock = clock_of(sharding, hardware)
    return {
        name: None if clock is None else clock.both(batch).activations_share
        for name, batch in moved.items()
    }
