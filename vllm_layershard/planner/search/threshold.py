"""The threshold between forwards that move weights and those that move activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from vllm_layershard.errors import HardwareError
from vllm_layershard.estimate import Hardware, forecast
from vllm_layershard.estimate.phases.thresholds import MAX_TOKENS
from vllm_layershard.models import Sharding
from vllm_layershard.planner.options import Options

_ANY: Final = 1
"""Stands for the threshold until it is found."""


def is_open(options: Options) -> bool:
    """Whether the planner is to find the threshold."""
    return options.get("move") == "auto" and "move_weights_from" not in options


def to_be_found(options: Options) -> Options:
    """The options with a threshold in the place of none."""
    return options | Options(move_weights_from=_ANY)


def with_threshold(
    sharding: Sharding, hardware: Hardware, sizes: Mapping[str, int], kv_cache_dtype: str
) -> tuple[Sharding, tuple[str, ...]]:
    """The sharding with the threshold of this hardware, and a note that says where it is from.

    Raises:
        HardwareError: the hardware lacks a number that it needs.
        PlanError: ranks that pull from each other lie on several nodes.
    """
    if not sharding.moves:
        return sharding, ()
    from vllm_layershard.estimate.activations.judge import judge  # seldom asked for

    batches = forecast(sharding, hardware, **sizes, traced=False).batches
    found = judge(sharding, hardware, batches, kv_cache_dtype)
    if found.lacking:
        raise HardwareError(
            f"--move auto: {hardware.name} lacks {'; '.join(found.lacking)}; give "
            "--move-weights-from, or the numbers in a profile (--hardware FILE.json)"
        )
    tokens = found.move_weights_from or MAX_TOKENS
    config = replace(sharding.config, move_weights_from=tokens)
    note = (
        f"--move auto: weights move from {tokens:,} tokens a rank on, as estimated for "
        f"{hardware.name}; measure it there"
    )
    return sharding._replace(config=config), (note,)
