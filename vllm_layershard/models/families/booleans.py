"""Fields that are true or false, and what becomes of any other value in them.

Source: transformers 5 and vLLM 0.32, the config class of each model_type: it refuses another value
in each field that it declares so. vLLM's models ask only whether a field that no class declares
counts as true. A test asks the classes. It is read only where another value stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vllm_layershard.models.sources.config_file import ConfigFile, shown

_EVERY: Final = "use_cache tie_word_embeddings"
_BIAS: Final = f"{_EVERY} attention_bias"
_LOSS: Final = f"{_EVERY} output_router_logits"
_BOTH: Final = f"{_BIAS} output_router_logits"
_ROUTED: Final = f"{_BOTH} norm_topk_prob"
_TURNED: Final = f"{_ROUTED} rope_interleave"

_BY_THE_CLASS: Final[Mapping[str, str]] = {
    "deepseek_v2": f"{_ROUTED} mlp_bias",
    "deepseek_v3": _TURNED,
    "deepseek_v32": _TURNED,
    "kimi_k2": _TURNED,
    "kimi_k25": _TURNED,
    "glm4_moe": f"{_ROUTED} use_qk_norm",
    "glm4_moe_lite": _TURNED,
    "glm_moe_dsa": f"{_ROUTED} mlp_bias",
    "gpt_oss": _BOTH,
    "llama": f"{_BIAS} mlp_bias",
    "longcat_flash": _BOTH,
    "minimax_m2": _LOSS,
    "ministral3": _EVERY,
    "mistral": _EVERY,
    "mixtral": _LOSS,
    "qwen2": f"{_EVERY} use_sliding_window",
    "qwen3": f"{_BIAS} use_sliding_window",
    "qwen3_moe": f"{_ROUTED} use_sliding_window",
    "qwen3_next": _ROUTED,
    "qwen3_5": _BIAS,
    "qwen3_5_text": _BIAS,
    "qwen3_5_moe": _BOTH,
    "qwen3_5_moe_text": _BOTH,
    "qwen3_vl": "use_cache attention_bias",
    "qwen3_vl_moe": _BOTH,
}
"""By model_type; of a multimodal one those of its language model."""

_AROUND: Final = "tie_word_embeddings"
"""Of what stands beside the language model in a multimodal config."""

_CONDITIONS: Final = (
    "tie_word_embeddings attention_bias bias qkv_bias mlp_bias qk_norm use_bias use_qkv_bias "
    "use_qk_norm use_rmsnorm use_sliding_window use_routing_bias moe_router_enable_expert_bias"
)
"""What the families read as true or false, whether a class declares it or not."""


def with_booleans(
    config: ConfigFile, values: Mapping[str, Any], model_type: str, *, around: bool
) -> dict[str, Any]:
    """The values, true or false in each condition of a model that its class does not check.

    `around`: of what stands beside a language model.

    Raises:
        ModelError: the class refuses a value, which is neither true nor false; it is named.
    """
    declared = (_AROUND if around else _BY_THE_CLASS.get(model_type, "")).split()
    for field in declared:
        value = values.get(field)
        if value is not None and not isinstance(value, bool):
            config.fail(
                field,
                f"{shown(value)} is neither true nor false: vLLM does not load such a config",
            )
    counted = {
        field: bool(values[field])
        for field in ([] if around else _CONDITIONS.split())
        if values.get(field) is not None
    }
    return {**values, **counted}
