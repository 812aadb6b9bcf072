"""The quantisation method that a config.json states. Fails closed."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from vllm_layershard.models.quantization.choice import Nothing, Quantization
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_READERS: Final[dict[str, tuple[str, str]]] = {
    "fp8": ("fp8", "read_fp8"),
    "compressed-tensors": ("compressed_tensors", "read_compressed_tensors"),
    "modelopt": ("modelopt", "read_modelopt"),
    "modelopt_fp4": ("modelopt", "read_modelopt"),
    "awq": ("awq", "read_awq"),
    "gptq": ("gptq", "read_gptq"),
    "mxfp4": ("mxfp4", "read_mxfp4"),
    "ascend": ("ascend", "read_ascend"),
}
"""Method -> the module and the function that read it, imported only when it is asked for."""


def quantization_of(config: ConfigFile) -> Quantization:
    """Read `quantization_config`.

    Raises:
        ModelError: a method that is not supported yet, or values that make no sense.
    """
    section = config.section("quantization_config")
    if section is None:
        if config.get("compression_config") is not None:
            config.fail("compression_config", "this quantisation is not supported yet")
        return Quantization("none", Nothing())
    method = section.string("quant_method")
    if method not in _READERS or (method == "mxfp4" and config.string("model_type") != "gpt_oss"):
        config.fail(
            "quantization_config",
            f"quant_method {shown(method)} is not supported yet; supported are none, "
            f"{', '.join(name for name in _READERS if name != 'mxfp4')}, and gpt-oss's mxfp4",
        )
    module, function = _READERS[method]
    reader: Any = getattr(import_module(f"{__package__}.{module}"), function)
    read: Quantization = reader(section)
    return read


def cache_dtype_of(config: ConfigFile, *, latent: bool) -> str | None:
    """The cache dtype that a checkpoint asks for where nobody names one; None: the model's.

    `latent`: MLA, whose attention does not look at what compressed-tensors states.
    Source: vLLM 0.32, utils/torch_utils.py, `get_kv_cache_quant_algo_string`;
    layers/attention/attention.py, `Attention.__init__`.

    Raises:
        ModelError: a value of the wrong type.
    """
    section = config.section("quantization_config")
    method = section.string("quant_method") if section is not None else None
    if section is None or method is None:
        return None
    if method == "compressed-tensors":
        return "fp8" if section.get("kv_cache_scheme") is not None and not latent else None
    if not method.startswith("modelopt"):
        return None
    values = section.section("quantization") or section
    asked = values.get("kv_cache_scheme") or values.get("kv_cache_quant_algo")
    if isinstance(asked, dict):
        kind = (asked.get("type"), asked.get("num_bits"), asked.get("dynamic"))
        return "fp8" if kind == ("float", 8, False) else "nvfp4" if kind[1] == 4 else None
    if asked is not None and not isinstance(asked, str):
        values.fail("kv_cache_quant_algo", f"{shown(asked)} is not a string")
    return {"FP8": "fp8_e4m3", "NVFP4": "nvfp4"}.get((asked or "").upper())
