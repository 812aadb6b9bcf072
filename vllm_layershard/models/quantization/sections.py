"""Finds sections of a config that none of the planner's models has: they may state anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

_KNOWN: Final = frozenset(
    {
        # Wrappers, in their config classes.
        *("text_config", "vision_config", "audio_config"),
        # Every config class of transformers, in configuration_utils.py.
        *("auto_map", "id2label", "label2id", "pruned_heads", "generation_config"),
        # Rope, and the types of layers in it, in modeling_rope_utils.py.
        *("rope_scaling", "rope_parameters", "full_attention", "sliding_attention"),
        *("chunked_attention", "linear_attention", "main", "compress"),
        # Qwen2.5-1M, in vLLM's models/qwen2.py and config/model.py; Qwen3.8's draft layer.
        *("dual_chunk_attention_config", "sparse_attention_config", "mtp"),
        # Mistral's params.json, in vLLM's transformers_utils/configs/mistral.py.
        *("yarn", "moe", "llama_4_scaling", "vision_encoder"),
    }
)
"""Sections that models have, without sections of their own but these. Tests ask the classes."""

_OF_TASKS: Final = frozenset({"task_specific_params", "custom_pipelines"})
"""Sections with one of any name for each task; the second in transformers' pipelines/base.py."""


def unknown_sections(values: Any) -> Iterator[tuple[str, Any]]:
    """The path of each section that is not known, with its contents. Empty ones say nothing."""
    left: list[tuple[str, Any]] = [("", values)]
    while left:
        path, section = left.pop()
        for key, value in section.items():
            at = f"{path}.{key}" if path else str(key)
            if key in _OF_TASKS and isinstance(value, dict):
                tasks = [(f"{at}.{task}", inner) for task, inner in value.items()]
                left += [(task, inner) for task, inner in tasks if isinstance(inner, dict)]
            elif key in _KNOWN and isinstance(value, dict):
                left.append((at, value))
            elif _holds_sections(value):
                yield at, value


def _holds_sections(value: Any) -> bool:
    """Whether it is an object that is not empty, or a list with one, however deep."""
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, list):
            left.extend(inner)
        elif isinstance(inner, dict) and inner:
            return True
    return False
