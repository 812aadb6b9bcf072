"""Prompts and contexts that are longer than a model's sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_layershard.estimate.wording import tokens
from vllm_layershard.models.cache.longest import longest_of


def longer_than_positions(config: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Of the sizes that are given: prompts and contexts for which the model has no positions.

    Nothing where its config.json does not say how many it has.
    """
    within = config.get("text_config")
    text = within if isinstance(within, Mapping) else config
    longest = longest_of(text)
    if longest is None:
        return ()
    cached = sizes.get("cached", 0)
    asked = {"context": sizes.get("context", 0)}
    for key in ("tokens", "prompt"):  # without a length the prefill is of one prompt
        if key in sizes:
            asked["prompt"] = sizes[key] + cached
    return tuple(
        f"a {name} of {tokens(length)} is longer than the {longest:,} for which this model has "
        f"positions (max_position_embeddings): vLLM refuses it"
        for name, length in asked.items()
        if length > longest
    )
