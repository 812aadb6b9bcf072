"""What a model's config class gives the fields that a config.json leaves out.

Source: transformers 5, the class of each model_type (`XConfig` in models/x/configuration_x.py), and
vLLM 0.32, transformers_utils/configs/, for kimi_k2 and kimi_k25. A test compares with the classes.
A field that is null is not left out: it is None to the class, which may refuse it
(null_fields.py). What is neither true nor false may be refused, too (booleans.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from vllm_layershard.models.sources.config_file import ConfigFile, shown


class Class(NamedTuple):
    """What one config class does with its fields.

    `defaults`: of those that change a plan and that a family may find missing. `aliases`: another
    name of a field, which the class takes as well -> the field. `stated`: fields without which the
    bytes would be a guess.
    """

    defaults: Mapping[str, Any] = {}
    aliases: Mapping[str, str] = {}
    stated: tuple[str, ...] = ()


_USUAL: Final[Mapping[str, Any]] = {"hidden_act": "silu", "tie_word_embeddings": False}
_BIAS: Final[Mapping[str, Any]] = {**_USUAL, "attention_bias": False}
_LONGEST: Final = "max_position_embeddings"
"""Counts where layers keep windows or states: a server counts its cache in longest sequences."""

_WINDOWED: Final[Mapping[str, Any]] = {
    _LONGEST: 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_ROUTED: Final = ("n_routed_experts",)
_ROUTED_TOO: Final = {"num_local_experts": "n_routed_experts"}
_LOCAL: Final = {"num_experts": "num_local_experts"}

_DRAFTED: Final = {"num_mtp_layers": "num_nextn_predict_layers"}
_DRAFTS: Final[Mapping[str, Any]] = {"num_nextn_predict_layers": 1}
_HYBRID: Final[Mapping[str, Any]] = {
    **_BIAS,
    _LONGEST: 32768,
    "head_dim": 256,
    "full_attention_interval": 4,
}

_DEEPSEEK_V3: Final = Class(
    {**_USUAL, **_DRAFTS, "n_shared_experts": 1, "q_lora_rank": 1536, "first_k_dense_replace": 3},
    {**_ROUTED_TOO, **_DRAFTED},
    _ROUTED,
)
_QWEN3_5_TEXT: Final = Class({**_HYBRID, "num_key_value_heads": 4})
_QWEN3_5_MOE_TEXT: Final = Class({**_HYBRID, "num_key_value_heads": 2})
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
        {
            **_USUAL,
            "n_shared_experts": 2,
            "q_lora_rank": 1536,
            "topk_method": "greedy",
            "first_k_dense_replace": 0,
        },
        {"num_experts": "n_routed_experts"},
        _ROUTED,
    ),
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "glm_moe_dsa": Class(
        {
            **_USUAL,
            "n_shared_experts": 1,
            "first_k_dense_replace": 3,
            "q_lora_rank": 2048,
            "index_topk": 2048,
            "index_n_heads": 32,
            "index_head_dim": 128,
        },
        {**_ROUTED_TOO, "num_experts": "n_routed_experts"},
        _ROUTED,
    ),
    "glm4_moe_lite": Class(
        {**_USUAL, "n_shared_experts": 1, "q_lora_rank": 768},
        {**_ROUTED_TOO, "head_dim": "qk_rope_head_dim"},
        _ROUTED,
    ),
    "glm4_moe": Class(
        {
            **_BIAS,
            **_DRAFTS,
            "num_key_value_heads": 8,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "use_qk_norm": False,
        },
        {**_ROUTED_TOO, **_DRAFTED},
        ("head_dim",),
    ),
    "gpt_oss": Class(
        {
            _LONGEST: 131072,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "tie_word_embeddings": False,
        },
        _LOCAL,
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
    ),
    "minimax_m2": Class(
        {"num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
        _LOCAL,
    ),
    "ministral3": Class(
        {
            **_USUAL,
            _LONGEST: 262144,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "sliding_window": None,
        }
    ),
    "mistral": Class(
        {**_USUAL, _LONGEST: 131072, "num_key_value_heads": 8, "sliding_window": 4096}
    ),
    "mixtral": Class(
        {
            _LONGEST: 131072,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
            "sliding_window": None,
        },
        _LOCAL,
    ),
    "qwen2": Class({**_USUAL, **_WINDOWED, "num_key_value_heads": 32}),
    "qwen3": Class({**_BIAS, **_WINDOWED, "num_key_value_heads": 32, "head_dim": 128}),
    "qwen3_moe": Class(
        {
            **_BIAS,
            _LONGEST: 32768,
            "num_key_value_heads": 4,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        {"num_local_experts": "num_experts"},
    ),
    "qwen3_next": Class(
        {
            **_HYBRID,
            "num_key_value_heads": 2,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "intermediate_size": 5632,
        },
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
    ),
    "qwen3_5": _QWEN3_5_TEXT,
    "qwen3_5_moe": _QWEN3_5_MOE_TEXT,
}
"""Of the language model within a multimodal one, whatever model_type its section states."""


_BOOLEANS: Final = (
    *("tie_word_embeddings", "use_cache", "attention_bias", "mlp_bias", "output_router_logits"),
    *("norm_topk_prob", "rope_interleave", "use_qk_norm", "use_sliding_window", "bias", "qk_norm"),
    *("qkv_bias", "use_bias", "use_qkv_bias", "use_rmsnorm", "use_routing_bias"),
    "moe_router_enable_expert_bias",
)
"""Fields that are true or false to some class, or to some model."""


def completed(config: ConfigFile, model_type: str) -> ConfigFile:
    """The config with the values that its class gives the fields that it leaves out.

    Raises:
        ModelError: a field is left out that has to be stated, is null or no boolean where that is
            no value, or differs from its other name; it is named.
    """
    inner = config.get("text_config")
    if model_type in _WRAPPERS and isinstance(inner, dict):
        section = ConfigFile(f"{config.where}: text_config", inner)
        values = _completed(section, model_type, _WRAPPERS[model_type])
        _refuse_null(config, config.values, model_type, around=True)
        _booleans(config, config.values, model_type, around=True)
        return config._replace(values={**config.values, "text_config": values})
    values = _completed(config, model_type, _CLASSES.get(model_type, Class()))
    return config._replace(values=values)


def _completed(config: ConfigFile, model_type: str, known: Class) -> dict[str, Any]:
    values = dict(config.values)
    for other, field in known.aliases.items():
        if other in values:
            _take(config, values, other, field)
    for field in known.stated:
        if field not in values:
            config.fail(
                field,
                "is missing, and what the model's own class would take for it may not be what its "
                f"checkpoint holds; write it into config.json{_none(model_type, field)}",
            )
    _refuse_null(config, values, model_type, around=False)
    return {**known.defaults, **_booleans(config, values, model_type, around=False)}


def _take(config: ConfigFile, values: dict[str, Any], other: str, field: str) -> None:
    """What a config states by another name of a field.

    Raises:
        ModelError: it states the field too, and both differ: the class would take one of the two.
    """
    value = values.setdefault(field, values[other])
    if type(value) is not type(values[other]) or value != values[other]:
        config.fail(
            field,
            f"{shown(value)}: {other} is another name of it to the model's own class, and "
            f"{shown(values[other])} there; leave one of the two out",
        )


def _none(model_type: str, field: str) -> str:
    """How to write that a model has none of it."""
    from vllm_layershard.models.families.null_fields import never_null

    return "" if field in never_null(model_type) else " (null where it has none)"


def _booleans(
    config: ConfigFile, values: Mapping[str, Any], model_type: str, *, around: bool
) -> Mapping[str, Any]:
    """The values, with booleans where they count as such; `around`: as in `_refuse_null`.

    Raises:
        ModelError: the class refuses a value, which is neither true nor false; it is named.
    """
    if all(isinstance(values.get(field, False), bool) for field in _BOOLEANS):
        return values
    from vllm_layershard.models.families.booleans import with_booleans

    return with_booleans(config, values, model_type, around=around)


def _refuse_null(
    config: ConfigFile, values: Mapping[str, Any], model_type: str, *, around: bool
) -> None:
    """Refuse a null that is no value; `around`: of what stands beside a language model."""
    if None not in values.values():
        return
    from vllm_layershard.models.families.null_fields import never_null, never_null_around

    refused = never_null_around() if around else never_null(model_type)
    for field, value in values.items():
        if value is None and field in refused:
            config.fail(
                field,
                "is null, which is no value of this field: vLLM does not load such a config; "
                "write the value",
            )
