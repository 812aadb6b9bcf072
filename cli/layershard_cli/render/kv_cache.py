"""KV cache: the tokens that a plan makes room for, in words."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.estimate.capacity import CacheLimit
from vllm_layershard.models import Sharding, layer_caches
from vllm_layershard.planner.results.plan_result import PlanResult


class CacheTokens(NamedTuple):
    """A number of tokens and what it counts, in a sentence and as the label of a figure.

    `limit`: the rank that limits the cache. `where`: its pipeline stage, for its weights; empty
    where there is one stage only.
    """

    tokens: int
    sentence: str
    label: str
    limit: CacheLimit
    where: str


def cache_tokens(result: PlanResult) -> CacheTokens:
    """Those that a rank gains; those that have room where sharding alone makes the weights fit."""
    fit, limit = result.forecast.fit, result.limit
    where = _where(result.planned, limit)
    counted = _counted(result.planned, result.kv_cache_dtype, limit)
    if fit is not None and not fit.fits:
        label = f"KV tokens have room, {counted}"
        return CacheTokens(0, f"room for no token, {counted}", label, limit, where)
    if fit is not None and not fit.fits_without_sharding:
        room = result.room_tokens
        assert room is not None, "what fits is known, so the memory is"
        return CacheTokens(
            room,
            f"room for {room:,} tokens, {counted}; without sharding for none",
            f"KV tokens have room, none without sharding, {counted}",
            limit,
            where,
        )
    gained = limit.tokens_gained
    more = "more" if gained >= 0 else "fewer"
    other = _other_stage(result.planned, limit)
    sentence = f"{abs(gained):,} {more} tokens, {counted}{other}"
    return CacheTokens(abs(gained), sentence, f"{more} KV tokens, {counted}{other}", limit, where)


def _counted(sharding: Sharding, kv_cache_dtype: str, limit: CacheLimit) -> str:
    """The bytes that a token takes; where windows or states have a say, the sequences."""
    model = sharding.model
    longest = model.blueprint.longest
    every = range(model.num_layers)
    caches = layer_caches(model, kv_cache_dtype, every, sharding.deployment)
    if longest is not None and caches.in_sequences(longest):
        return f"counted in sequences of {longest:,}"
    return f"at {sharding.kv_bytes_per_token(kv_cache_dtype, limit.rank):,} bytes a token"


def _where(sharding: Sharding, limit: CacheLimit) -> str:
    layout = sharding.deployment.layout
    if layout.pp == 1:
        return ""
    return f" on stage {layout.stage_of(limit.rank)}, which limits the KV cache"


def _other_stage(sharding: Sharding, limit: CacheLimit) -> str:
    layout = sharding.deployment.layout
    stage = layout.stage_of(limit.rank_without)
    if stage == layout.stage_of(limit.rank):
        return ""
    return f"; without sharding stage {stage} limits the KV cache"
