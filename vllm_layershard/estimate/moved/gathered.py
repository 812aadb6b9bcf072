"""What each rank gathers where activations move, in the largest forward that moves them."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_layershard.estimate.moved.linears import Moved
from vllm_layershard.models import Sharding
from vllm_layershard.plan.move import move_rule


def gathered_bytes(sharding: Sharding, linears: Sequence[Moved]) -> tuple[int, ...]:
    """By global rank, the memory of what it gathers of its widest linear.

    Whoever computes for others gathers: a layer's owner, or every rank where it has rows. No
    forward has more tokens than a step of the model's `cache_device`. vLLM measures this memory in
    its profile run, and gives the cache what is left. See runtime/moves/series.py, Note [Room for
    what is gathered].
    """
    layout, rule = sharding.deployment.layout, move_rule(sharding.config)
    found = [0] * layout.world_size
    if rule.move == "weights":
        return tuple(found)
    tokens = sharding.model.cache_device.step_tokens // layout.pcp
    if rule.weights_from is not None:
        tokens = min(tokens, rule.most_tokens)
    for one in linears:
        for rank in one.computing:
            found[rank] = max(found[rank], one.gathered_bytes(tokens))
    return tuple(found)
