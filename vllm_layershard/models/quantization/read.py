"""The quantisation that a section states, by the method of vLLM's that reads it. Fails closed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from vllm_layershard.models.cache.kv_cache import StoredCache
from vllm_layershard.models.quantization.choice import Nothing, Quantization
from vllm_layershard.models.quantization.names import names_of
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_READERS: Final[dict[str, tuple[str, str]]] = {
    "fp8": ("fp8", "read_fp8"),
    "compressed-tensors": ("compressed_tensors", "read_compressed_tensors"),
    "modelopt": ("modelopt", "read_modelopt"),
    "awq": ("awq", "read_awq"),
    "gptq": ("gptq", "read_gptq"),
    "mxfp4": ("mxfp4", "read_mxfp4"),
    "mxfp8": ("modelopt", "read_mxfp8"),
    "quark": ("quark", "read_quark"),
    "auto-round": ("inc", "read_inc"),
    "fbgemm_fp8": ("fbgemm_fp8", "read_fbgemm_fp8"),
    "ascend": ("ascend", "read_ascend"),
}
"""Method -> the module and the function that read it, imported only when it is asked for."""

_SAME: Final = {
    "modelopt_fp4": "modelopt",
    "modelopt_mxfp8": "modelopt",
    "modelopt_mixed": "modelopt",
    "auto_awq": "awq",
    "awq_marlin": "awq",
    "auto_gptq": "gptq",
    "gptq_marlin": "gptq",
    "gpt_oss_mxfp4": "mxfp4",
    "inc": "auto-round",
}
"""Methods of one reader: vLLM chooses among modelopt's by the algorithm, not by this name."""

UNREAD_METHODS: Final = (
    "fp_quant",
    "humming",
    "experts_int8",
    "moe_wna16",
    "torchao",
    "deepseek_v4_fp8",
    "online",
    "fp8_per_tensor",
    "fp8_per_block",
    "fp8_per_channel",
    "int8_per_channel_weight_only",
    "nvfp4_per_token",
)
"""Methods that vLLM 0.32 has a class for, and the planner does not read yet.
Source: vLLM 0.32, quantization/__init__.py, `QUANTIZATION_METHODS`."""


def known_methods() -> frozenset[str]:
    """Every method that is read, by all its names."""
    return frozenset((*_READERS, *_SAME))


def quantization_of(section: ConfigFile | None, architecture: str) -> Quantization:
    """What a section states; None where `stated_section` has found none.

    Raises:
        ModelError: a method that is not supported, or values that make no sense.
    """
    if section is None:
        return Quantization("none", Nothing())
    method = method_of(section)
    if not method:
        _require_producer(section)
        section.fail(
            "quant_method",
            "is missing, so no source states how the weights are stored, and vLLM 0.32 would take "
            "them for unquantised; name the method",
        )
    known = _SAME.get(method, method)
    if known not in _READERS:
        has = method in UNREAD_METHODS
        why = (
            "vLLM 0.32 has a class for it, and the planner does not read it yet"
            if has
            else "vLLM 0.32 has no class for it"
        )
        section.fail(
            "quant_method",
            f"{shown(section.get('quant_method'))} is not supported: {why}; supported are "
            f"{', '.join(_READERS)}",
        )
    module, function = _READERS[known]
    reader: Any = getattr(import_module(f"{__package__}.methods.{module}"), function)
    if known == "modelopt" and _algorithm_alone(section) is not None:  # as vLLM writes it there
        section = section._replace(values={**section.values, "quant_method": known})
    read: Quantization = reader(section, names_of(architecture))
    return read


_BFLOAT16_ALONE: Final = frozenset({"modelopt_mxfp8", "mxfp8", "mxfp4"})
"""Methods of which vLLM runs no other dtype.
Source: vLLM 0.32, quantization/modelopt.py and mxfp4.py, `get_supported_act_dtypes`."""


def require_dtype(section: ConfigFile, quantization: Quantization, dtype: str) -> None:
    """Refuse a dtype in which vLLM runs no model of this quantisation.

    Source: vLLM 0.32, config/vllm.py, `_get_quantization_config`.

    Raises:
        ModelError: names the dtype.
    """
    if quantization.name in _BFLOAT16_ALONE and dtype != "bfloat16":
        section.fail(
            "quant_method",
            f"{quantization.name}: vLLM 0.32 runs it in bfloat16 alone, and config.json states "
            f"dtype {dtype}; state bfloat16 there",
        )


def _require_producer(section: ConfigFile) -> None:
    """Say why a section of Model Optimizer's older form, which states no method, is not read."""
    producer, inner = section.get("producer"), section.get("quantization")
    name = producer.get("name") if isinstance(producer, Mapping) else producer
    if isinstance(inner, Mapping) and inner.get("quant_algo") and name != "modelopt":
        section.fail(
            "producer",
            f"{shown(name)} is not 'modelopt', and vLLM 0.32 reads this older form of Model "
            "Optimizer's by that name alone; correct it, or state quant_method",
        )


def method_of(section: ConfigFile) -> str:
    """The method in vLLM's spelling; empty where none is stated.

    Source: vLLM 0.32, model_arch_config_convertor.py, `_normalize_quantization_config`.

    Raises:
        ModelError: it is no string, or an algorithm of modelopt's that vLLM takes for unknown.
    """
    algorithm = _algorithm_alone(section)
    if algorithm is not None:
        if str(algorithm).upper() not in _ALONE:
            section.fail(
                "quantization: quant_algo",
                f"{shown(algorithm)}: vLLM 0.32 has no class for it in this place; it takes "
                f"{', '.join(_ALONE)} there, and others from config.json; give a checkpoint of one "
                "of those",
            )
        return "modelopt"
    method = (section.string("quant_method") or "").lower()
    method = method.replace("compressed_tensors", "compressed-tensors")
    return "modelopt" if method.startswith("modelopt") else method


def _algorithm_alone(section: ConfigFile) -> object:
    """The algorithm of Model Optimizer's older form, which decides the method; None: another."""
    inner = section.get("quantization")
    producer = section.get("producer")
    name = producer.get("name") if isinstance(producer, Mapping) else None
    if isinstance(inner, Mapping) and (name == "modelopt" or "modelopt_quant_config" in inner):
        return inner.get("quant_algo")
    return None


_ALONE: Final = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4")
"""Algorithms of Model Optimizer's older, nested form, which states no method."""


def cache_of(section: ConfigFile | None, *, latent: bool) -> StoredCache | None:
    """The cache that a checkpoint asks for where nobody names one; None: the model's dtype.

    `latent`: MLA, whose attention does not look at what compressed-tensors states.

    Raises:
        ModelError: names the key that vLLM refuses.
    """
    method = method_of(section) if section is not None else ""
    if section is None or method not in ("modelopt", "compressed-tensors", "quark"):
        return None
    from vllm_layershard.models.quantization.cache_scheme import stored_cache_of  # few state one

    return stored_cache_of(section, method, latent=latent)
