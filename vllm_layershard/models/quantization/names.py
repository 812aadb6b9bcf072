"""How vLLM calls the modules that a checkpoint names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

FUSED: Final[Mapping[str, tuple[str, ...]]] = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
}
"""vLLM's name of a fused linear -> the names of its parts in a checkpoint."""
