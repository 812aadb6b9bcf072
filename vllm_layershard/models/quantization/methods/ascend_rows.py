"""The linears and experts that vllm-ascend reads by their parts, a row a model type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vllm_layershard.models.quantization.names import DELTA_NET, GATE_UP, LATENT, QKV, Fused

_EXPERTS: Final[Fused] = {
    "experts": ("experts.0.gate_proj", "experts.0.up_proj", "experts.0.down_proj")
}
_NUMBERED: Final[Fused] = {"experts": ("experts.0.w1", "experts.0.w2", "experts.0.w3")}

_MLA: Final[Fused] = {**GATE_UP, **_EXPERTS, **LATENT}
_GQA: Final[Fused] = {**QKV, **GATE_UP, **_EXPERTS}

_ROWS: Final[Mapping[str, Fused]] = {
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "kimi_k2": _MLA,
    "glm_moe_dsa": _MLA,
    "glm4_moe_lite": _MLA,
    "longcat_flash": _MLA,
    "qwen3_moe": _GQA,
    "qwen3_vl_moe": _GQA,
    "glm4_moe": _GQA,
    "qwen3_next": {**_GQA, "in_proj": ("in_proj_qkvz", "in_proj_ba")},
    "qwen3_5": {**QKV, **GATE_UP, **DELTA_NET},
    "qwen3_5_moe": {**_GQA, **DELTA_NET},
    "minimax_m2": {**QKV, **_NUMBERED},
}
"""Those of the model types that the planner reads.
Source: vllm-ascend 182b75e, quantization/modelslim_config.py, `packed_modules_model_mapping`."""


def parts_of_type(model_type: str, otherwise: Fused) -> Fused:
    """The row of a model type; where it has none, the parts of vLLM's class, without experts.

    Source: there, `AscendModelSlimConfig.get_quant_method`.
    """
    return _ROWS.get(model_type, otherwise)


def asked_name(model_type: str, prefix: str) -> str:
    """The name by which vllm-ascend looks a module up, of vLLM's name.

    Source: there.
    """
    return prefix.replace("mlp", "block_sparse_moe") if model_type == "minimax_m2" else prefix
