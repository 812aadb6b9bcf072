"""KV cache: the tokens that a plan makes room for, in words."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.planner.results.plan_result import PlanResult


class CacheTokens(NamedTuple):
    """A number of tokens and what it counts, in a sentence and as the label of a figure."""

    tokens: int
    sentence: str
    label: str


def cache_tokens(result: PlanResult) -> CacheTokens:
    """Those that a rank gains; those that have room where sharding alone makes the weights fit."""
    sharding, fit, dtype = result.planned, result.forecast.fit, result.kv_cache_dtype
    per_token = sharding.kv_bytes_per_token(dtype, sharding.binding_rank)
    bytes_a_token = f"at {per_token:,} bytes a token"
    if fit is not None and not fit.fits:
        return CacheTokens(0, f"room for no token, {bytes_a_token}", "KV tokens have room")
    if fit is not None and not fit.fits_without_sharding:
        room = result.room_tokens
        assert room is not None, "what fits is known, so the memory is"
        return CacheTokens(
            room,
            f"room for {room:,} tokens, {bytes_a_token}; without sharding for none",
            "KV tokens have room, none without sharding",
        )
    gained = sharding.tokens_gained(dtype)
    more = "more" if gained >= 0 else "fewer"
    sentence = f"{abs(gained):,} {more} tokens, {bytes_a_token}"
    return CacheTokens(abs(gained), sentence, f"{more} KV tokens")
