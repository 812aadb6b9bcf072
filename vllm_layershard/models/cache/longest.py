"""The longest sequence that a server takes, where a config.json says it in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_LONGER_BY_ITSELF: Final = frozenset(
    {"default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}
)
"""Rope types with which max_position_embeddings is what vLLM takes as it stands."""


def longest_of(text: Mapping[str, Any]) -> int | None:
    """Its tokens; None where nothing says it, or where a rope of another type stretches it.

    `text`: the language model's section.

    Source: vLLM 0.32, config/model.py, `_get_and_verify_max_len`.
    """
    longest = text.get("model_max_length") or text.get("max_position_embeddings")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else None
    known = type(longest) is int and isinstance(kind, str) and kind in _LONGER_BY_ITSELF
    return longest if known else None
