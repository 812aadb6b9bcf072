"""Linears that are never sharded, by the last part of their names, and why."""

from __future__ import annotations

from typing import Final

_NEVER_SHARDED: Final = {
    "kv_b_proj": "attention absorbs it and reads its weight outside the linear, only for prefills",
    "gate": "the router is read by the fused MoE kernels and is small",
    "router": "the router is read by the fused MoE kernels and is small",
    "classifier": "the router is read by the fused MoE kernels and is small",
    "conv1d": "the convolution's kernels read its weight outside the linear",
    "lm_head": "it is not a hidden layer's linear: there is nothing to hide its movement behind",
    "embed_tokens": "an embedding is no linear, and there is nothing to hide its movement behind",
    "wte": "an embedding is no linear, and there is nothing to hide its movement behind",
    "experts": "routed experts are distributed by expert parallelism, not by layer sharding",
    "w13_weight": "routed experts are distributed by expert parallelism, not by layer sharding",
    "w2_weight": "routed experts are distributed by expert parallelism, not by layer sharding",
}


def refusal_of(name: str) -> str | None:
    """Why a linear of this dotted name may never be sharded, or None if it may."""
    parts = name.split(".")
    if "experts" in parts:
        return _NEVER_SHARDED["experts"]
    return _NEVER_SHARDED.get(parts[-1])
