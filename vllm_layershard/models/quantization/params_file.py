"""params.json: Mistral's own format, which vLLM reads before the config.json beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vllm_layershard.models.sources.beside import PARAMS, Beside
from vllm_layershard.models.sources.config_file import (
    MAX_FILE_BYTES,
    ConfigFile,
    parse_config,
    shown,
)

_SIZES: Final[Mapping[str, str]] = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
}
"""Source: vLLM 0.32, transformers_utils/configs/mistral.py, `_remap_general_mistral_args`."""

_EXPERTS: Final = ("num_local_experts", "num_experts", "n_routed_experts")


def params_section(config: ConfigFile, beside: Beside) -> ConfigFile | None:
    """The quantisation that params.json states; None where there is none, or no such file is read.

    It is to be asked where vLLM reads the file, which takes from config.json only what the file
    leaves out. Sizes of which it says otherwise are refused.
    Source: vLLM 0.32, transformers_utils/config.py, `get_config` and `MistralConfigParser`;
    configs/mistral.py, `_remap_mistral_quantization_args`.

    Raises:
        ModelError: names the size, or the quantisation that vLLM does not know.
        UnknownModelError: the Hub was asked for the file and cannot be reached.
    """
    contents = beside(PARAMS, MAX_FILE_BYTES)
    if contents is None:
        return None
    params = parse_config(contents.raw, contents.where)
    _require_sizes(params, config)
    stated = params.section("quantization")
    if stated is None or not stated.values:
        return None
    if stated.get("qformat_weight") == "fp8_e4m3":
        scales = stated.get("qscheme_act")
        if scales not in ("NO_SCALES", "TENSOR", None):
            stated.fail("qscheme_act", f"{shown(scales)}: vLLM 0.32 takes TENSOR or NO_SCALES")
        scheme = "dynamic" if scales == "NO_SCALES" else "static"
        read = {"quant_method": "fp8", "activation_scheme": scheme}
        return ConfigFile(stated.where, read)
    method = str(stated.get("quant_method") or "").lower().replace("_", "-")
    if method != "compressed-tensors":
        params.fail(
            "quantization",
            f"{shown(stated.values)}: vLLM 0.32 has no class for it; it takes qformat_weight "
            "fp8_e4m3, and compressed-tensors",
        )
    return ConfigFile(stated.where, {**stated.values, "quant_method": method})


def _require_sizes(params: ConfigFile, config: ConfigFile) -> None:
    """Refuse a config.json of another model than the params.json that vLLM reads."""
    inner = config.get("text_config")
    text: Mapping[str, Any] = inner if isinstance(inner, dict) else config.values
    pairs = [(key, params.get(key), name, text.get(name)) for key, name in _SIZES.items()]
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings")))
    routed = any(text.get(name) for name in _EXPERTS)
    pairs += [
        ("tied_embeddings", bool(params.get("tied_embeddings")), "tie_word_embeddings", tied),
        ("moe", bool(params.get("moe")), "routed experts", routed),
    ]
    for key, read, name, planned in pairs:
        if read is not None and planned is not None and read != planned:
            params.fail(
                key,
                f"is {shown(read)}, and config.json has {name} {shown(planned)}: vLLM 0.32 reads "
                f"{PARAMS} where consolidated*.safetensors lie beside it; correct one, or give the "
                "config.json alone in a directory",
            )
