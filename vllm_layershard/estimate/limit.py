"""CacheLimit: the rank that limits the KV cache, and the tokens that sharding gains there."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.estimate.capacity import budget_of, have_room, rank_tokens, tightest
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.models import Sharding


class CacheLimit(NamedTuple):
    """The rank with room for the fewest tokens with sharding, and the one without.

    Both are the rank that gains the fewest tokens where the device's memory is not known. Where the
    weights do not fit without sharding, `rank_without` is `rank`.

    `tokens_gained`: what an engine holds more, as `capacity` counts it; to one token, since it is
    the rank's own gain where the same rank limits both. Where one of the two does not fit, or the
    memory is not known, what every rank gains. Negative: it loses them.
    """

    rank: int
    rank_without: int
    tokens_gained: int


def limit_of(sharding: Sharding, hardware: Hardware, kv_cache_dtype: str) -> CacheLimit:
    """Find it.

    Raises:
        ConfigError: a cache dtype that is not known for this model.
        ModelError: its checkpoint asks for one.
        HardwareError: no backend of vLLM takes its attention on this device.
    """
    saved = sharding.saved_bytes
    plain = [bytes_of.total for bytes_of in sharding.weight_bytes]
    held = [weights - more for weights, more in zip(plain, saved, strict=True)]
    gains = _gains(sharding, kv_cache_dtype)
    least = tightest(gains, [-more for more in saved], plain)
    budget = budget_of(hardware)
    if budget is None:
        return CacheLimit(least, least, gains[least] or 0)
    counts = (sharding.model, sharding.deployment, kv_cache_dtype)
    after = rank_tokens([budget - weights for weights in held], *counts)
    last = tightest(after, held)
    if not have_room(max(*plain, *held), budget):
        return CacheLimit(last, last, gains[least] or 0)
    before = rank_tokens([budget - weights for weights in plain], *counts)
    first = tightest(before, plain)
    if before[first] == before[last]:
        first = last  # both limit it
    alone, more = gains[last] or 0, (after[last] or 0) - (before[first] or 0)
    return CacheLimit(last, first, alone if abs(more - alone) <= 1 else more)


def _gains(sharding: Sharding, kv_cache_dtype: str) -> tuple[int | None, ...]:
    """Whole tokens that each rank alone has room for in what it saves."""
    saved = sharding.saved_bytes
    sizes = [abs(more) for more in saved]
    found = rank_tokens(sizes, sharding.model, sharding.deployment, kv_cache_dtype)
    return tuple(
        None if tokens is None else tokens if more >= 0 else -tokens
        for tokens, more in zip(found, saved, strict=True)
    )
