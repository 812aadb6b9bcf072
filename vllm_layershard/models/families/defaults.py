"""What a model's config class gives the fields that a config.json leaves out.

Source: transformers 5, the class of each model_type (`XConfig` in models/x/configuration_x.py), and
vLLM 0.32, transformers_utils/configs/, for kimi_k2 and kimi_k25. A test compares with the classes.
A field that is null is not left out: it is None to the class, which may refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from vllm_layershard.models.sources.config_file import ConfigFile


class Class(NamedTuple):
    """What one config class does with its fields.

    `defaults`: of those that change a plan and that a family may find missing. `aliases`: another
    name of a field, which the class takes as well -> the field. `stated`: fields without which the
    bytes would be a guess. `never_null`: those that tell a dense model from a mixture of experts,
    where a null is no number to the class, or to vLLM's model: neither would load it.
    """

    defaults: Mapping[str, Any] = {}
    aliases: Mapping[str, str] = {}
    stated: tuple[str, ...] = ()
    never_null: tuple[str, ...] = ()


_USUAL: Final[Mapping[str, Any]] = {"hidden_act": "silu", "tie_word_embeddings": False}
_BIAS: Final[Mapping[str, Any]] = {**_USUAL, "attention_bias": False}
_ROUTED: Final = ("n_routed_experts",)
_ROUTED_TOO: Final = {"num_local_experts": "n_routed_experts"}
_LOCAL: Final = {"num_experts": "num_local_experts"}

_DEEPSEEK_COUNTS: Final = (
    *("n_routed_experts", "n_shared_experts", "first_k_dense_replace", "moe_layer_freq"),
)
_GLM_COUNTS: Final = ("n_routed_experts", "n_shared_experts", "first_k_dense_replace")
_QWEN_COUNTS: Final = ("num_experts", "decoder_sparse_step")
_LOCAL_COUNTS: Final = ("num_local_experts",)

_DEEPSEEK_V3: Final = Class(
    {**_USUAL, "n_shared_experts": 1, "q_lora_rank": 1536},
    _ROUTED_TOO,
    _ROUTED,
    _DEEPSEEK_COUNTS,
)
_QWEN3_5_TEXT: Final = Class({**_BIAS, "num_key_value_heads": 4, "head_dim": 256})
_QWEN3_5_MOE_TEXT: Final = Class(
    {**_BIAS, "num_key_value_heads": 2, "head_dim": 256},
    never_null=("num_experts", "shared_expert_intermediate_size"),
)
_BAILING: Final = Class(
    stated=(
        "num_key_value_heads",
        "head_dim",
        "tie_word_embeddings",
        "use_bias",
        "use_qkv_bias",
        "use_qk_norm",
        "use_rmsnorm",
        "router_dtype",
        "moe_router_enable_expert_bias",
    )
)
"""Its class comes with each checkpoint, and no code of a checkpoint is run."""

_CLASSES: Final[Mapping[str, Class]] = {
    "bailing_moe": _BAILING,
    "bailing_moe_v2": _BAILING,
    "deepseek_v2": Class(
        {**_USUAL, "n_shared_experts": 2, "q_lora_rank": 1536, "topk_method": "greedy"},
        {"num_experts": "n_routed_experts"},
        _ROUTED,
        _DEEPSEEK_COUNTS,
    ),
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "glm_moe_dsa": Class(
        {
            **_USUAL,
            "n_shared_experts": 1,
            "q_lora_rank": 2048,
            "index_topk": 2048,
            "index_n_heads": 32,
            "index_head_dim": 128,
        },
        {**_ROUTED_TOO, "num_experts": "n_routed_experts"},
        _ROUTED,
        _GLM_COUNTS,
    ),
    "glm4_moe_lite": Class(
        {**_USUAL, "n_shared_experts": 1, "q_lora_rank": 768},
        _ROUTED_TOO,
        _ROUTED,
        _GLM_COUNTS,
    ),
    "glm4_moe": Class(
        {**_BIAS, "num_key_value_heads": 8, "n_shared_experts": 1, "use_qk_norm": False},
        _ROUTED_TOO,
        never_null=_GLM_COUNTS,
    ),
    "gpt_oss": Class(
        {"num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": False},
        _LOCAL,
        never_null=_LOCAL_COUNTS,
    ),
    "llama": Class({**_BIAS, "mlp_bias": False}),
    "longcat_flash": Class(
        {"q_lora_rank": 1536},
        {
            **_ROUTED_TOO,
            "num_experts_per_tok": "moe_topk",
            "intermediate_size": "ffn_hidden_size",
            "moe_intermediate_size": "expert_ffn_hidden_size",
        },
        never_null=("n_routed_experts", "zero_expert_num"),
    ),
    "minimax_m2": Class(
        {"num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
        _LOCAL,
        never_null=_LOCAL_COUNTS,
    ),
    "ministral3": Class(
        {**_USUAL, "num_key_value_heads": 8, "head_dim": 128, "sliding_window": None}
    ),
    "mistral": Class({**_USUAL, "num_key_value_heads": 8, "sliding_window": 4096}),
    "mixtral": Class(
        {"num_key_value_heads": 8, "tie_word_embeddings": False, "sliding_window": None},
        _LOCAL,
        never_null=_LOCAL_COUNTS,
    ),
    "qwen2": Class({**_USUAL, "num_key_value_heads": 32, "use_sliding_window": False}),
    "qwen3": Class(
        {**_BIAS, "num_key_value_heads": 32, "head_dim": 128, "use_sliding_window": False}
    ),
    "qwen3_moe": Class(
        {**_BIAS, "num_key_value_heads": 4, "decoder_sparse_step": 1, "mlp_only_layers": []},
        {"num_local_experts": "num_experts"},
        never_null=_QWEN_COUNTS,
    ),
    "qwen3_next": Class(
        {
            **_BIAS,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "intermediate_size": 5632,
        },
        never_null=(*_QWEN_COUNTS, "shared_expert_intermediate_size"),
    ),
    "qwen3_5_text": _QWEN3_5_TEXT,
    "qwen3_5_moe_text": _QWEN3_5_MOE_TEXT,
}

_WRAPPERS: Final[Mapping[str, Class]] = {
    "kimi_k25": _DEEPSEEK_V3,
    "qwen3_vl": Class(
        {
            "hidden_act": "silu",
            "attention_bias": False,
            "num_key_value_heads": 32,
            "head_dim": 128,
        }
    ),
    "qwen3_vl_moe": Class(
        {
            "hidden_act": "silu",
            "attention_bias": False,
            "num_key_value_heads": 16,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        {"num_local_experts": "num_experts"},
        never_null=_QWEN_COUNTS,
    ),
    "qwen3_5": _QWEN3_5_TEXT,
    "qwen3_5_moe": _QWEN3_5_MOE_TEXT,
}
"""Of the language model within a multimodal one, whatever model_type its section states."""


def completed(config: ConfigFile, model_type: str) -> ConfigFile:
    """The config with the values that its class gives the fields that it leaves out.

    Raises:
        ModelError: a field is left out that has to be stated; it is named.
    """
    inner = config.get("text_config")
    if model_type in _WRAPPERS and isinstance(inner, dict):
        section = ConfigFile(f"{config.where}: text_config", inner)
        values = {**config.values, "text_config": _completed(section, _WRAPPERS[model_type])}
    else:
        values = _completed(config, _CLASSES.get(model_type, Class()))
    return config._replace(values=values)


def _completed(config: ConfigFile, known: Class) -> dict[str, Any]:
    values = dict(config.values)
    for other, field in known.aliases.items():
        if other in values and field not in values:
            values[field] = values[other]
    for field in known.stated:
        if field not in values:
            none = "" if field in known.never_null else " (null where it has none)"
            config.fail(
                field,
                "is missing, and what the model's own class would take for it may not be what its "
                f"checkpoint holds; write it into config.json{none}",
            )
    for field in known.never_null:
        if field in values and values[field] is None:
            config.fail(
                field,
                "is null, and says neither that there are experts nor that there are none: vLLM "
                "does not load such a config; write the number",
            )
    return {**known.defaults, **values}
