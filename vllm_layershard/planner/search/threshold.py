"""The threshold between forwards that move weights and those that move activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vllm_layershard.errors import HardwareError, PlanError
from vllm_layershard.estimate import Hardware, forecast
from vllm_layershard.estimate.activations.judge import judge
from vllm_layershard.estimate.forwards.thresholds import MAX_TOKENS
from vllm_layershard.estimate.wording import tokens
from vllm_layershard.models import Sharding


def with_threshold(
    sharding: Sharding, hardware: Hardware, sizes: Mapping[str, int], kv_cache_dtype: str
) -> tuple[Sharding, tuple[str, ...]]:
    """The sharding with the threshold of this hardware, and a note that says where it is from.

    Raises:
        HardwareError: the hardware lacks a number that it needs.
        PlanError: nothing moves, or ranks that pull from each other lie on several nodes.
    """
    if not sharding.moves:
        raise PlanError(
            "--move auto: no weight is shared here, so that there is no threshold to find; leave "
            "it out, or give --move-weights-from"
        )
    batches = forecast(sharding, hardware, **sizes, traced=False).batches
    found = judge(sharding, hardware, batches, kv_cache_dtype)
    if found.lacking:
        raise HardwareError(
            f"--move auto: {hardware.name} lacks {'; '.join(found.lacking)}; give "
            "--move-weights-from, or the numbers in a profile (--hardware FILE.json)"
        )
    fewest = found.move_weights_from or MAX_TOKENS
    config = replace(sharding.config, move_weights_from=fewest)
    note = (
        f"--move auto: weights move from {tokens(fewest)} a rank on, as estimated for "
        f"{hardware.name}; measure it there"
    )
    return sharding._replace(config=config), (note,)
