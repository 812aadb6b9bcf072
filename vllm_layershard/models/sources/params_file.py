"""params.json: Mistral's own format, which vLLM reads before the config.json beside it.

Source: vLLM 0.32, transformers_utils/config.py, `get_config` and `MistralConfigParser`;
transformers_utils/configs/mistral.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from vllm_layershard.models.sources.beside import PARAMS, Beside, Directory, Repository
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
_OPTIONAL: Final = ("n_kv_heads", "head_dim")
_LONGEST: Final = "max_position_embeddings"
_DEFAULT_LONGEST: Final = 128_000
_STATED: Final = ("quantization", "quantization_config")
_HIDDEN: Final = ("quantization_config", "compression_config")
_WEIGHTS: Final = "consolidated*.safetensors"
_WHERE: Final = f"vLLM 0.32 reads {PARAMS} where {_WEIGHTS} lie beside it"


def served_config(config: ConfigFile | None, beside: Beside, *, whole: bool) -> ConfigFile | None:
    """The config that vLLM makes of params.json, where it reads that file; else config.json's.

    What the file leaves out config.json says. Sizes of which both say something else are refused.
    Where neither weights nor a config.json are, nothing else could be meant. An index of weights of
    its format says that the model has them, where they may lie elsewhere. `whole`: what is there is
    all that there is; not so in a cache. None: vLLM would read neither file.

    Raises:
        ModelError: names what differs, what vLLM does not know, or that nothing here can tell.
        UnknownModelError: the Hub was asked for a file and cannot be reached.
    """
    contents = beside(PARAMS, MAX_FILE_BYTES)
    if contents is None:
        return config
    params = parse_config(contents.raw, contents.where)
    if isinstance(beside, (Directory, Repository)):
        names = beside.names()
        if not any(fnmatchcase(name, _WEIGHTS) for name in names):
            weights = any(name.endswith((".safetensors", ".bin", ".pt")) for name in names)
            partial = isinstance(beside, Directory) and not (whole and weights)
            if partial and any(fnmatchcase(name, f"{_WEIGHTS}.index.json") for name in names):
                return _served(params, config)
            if config is not None and partial:
                _require_silent(params)
            if config is not None or weights:
                return config
    return _served(params, config)


def _require_silent(params: ConfigFile) -> None:
    """Refuse a quantisation that only weights which are not here would make vLLM read."""
    for key in _STATED:
        if params.get(key):
            params.fail(
                key,
                f"{shown(params.get(key))}: {_WHERE}, and what is here does not tell whether the "
                f"model has them; download its weights, or take {PARAMS} away if it has none",
            )


def _served(params: ConfigFile, config: ConfigFile | None) -> ConfigFile:
    _require_sizes(params, config or ConfigFile(params.where, {}))
    _require_known(params, config)
    section = _section(params)
    if config is not None and section is None:
        _require_not_hidden(params, config)
    where = params.where if config is None else f"{params.where}, before config.json"
    if config is not None and isinstance(config.get("text_config"), dict):
        section = section or params.get("quantization_config")
        more = {} if section is None else {"quantization_config": section}
        return ConfigFile(where, {**config.values, **more})
    left_out = (*_SIZES, *_STATED[:1], "model_type", "architectures", "tied_embeddings", "dtype")
    read: dict[str, Any] = {k: v for k, v in params.values.items() if k not in left_out}
    read |= {name: params.get(key) for key, name in _SIZES.items() if key in params.values}
    if section is not None:
        read["quantization_config"] = section
    base = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    base = dict(base if config is None else config.values)
    if params.get("dtype") is not None:
        base.pop("torch_dtype", None)
        read["dtype"] = params.get("dtype")
    if "tied_embeddings" in params.values or config is None:
        read["tie_word_embeddings"] = bool(params.get("tied_embeddings"))
    read |= _window(params, read.get("num_hidden_layers") or base.get("num_hidden_layers"))
    read |= _longest(params, config)
    values = {"sliding_window": None, **base, **read}
    for key, name in _SIZES.items():
        if values.get(name) is None and key not in _OPTIONAL:
            params.fail(key, f"is missing, and config.json states no {name}")
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    return ConfigFile(where, values)


def _section(params: ConfigFile) -> Mapping[str, Any] | None:
    """The quantisation that it states under Mistral's key, as vLLM rewrites it.

    Source: vLLM 0.32, configs/mistral.py, `_remap_mistral_quantization_args`.
    """
    stated = params.section("quantization")
    if stated is None or not stated.values:
        return None
    if stated.get("qformat_weight") == "fp8_e4m3":
        scales = stated.get("qscheme_act")
        if scales not in ("NO_SCALES", "TENSOR", None):
            stated.fail("qscheme_act", f"{shown(scales)}: vLLM 0.32 takes TENSOR or NO_SCALES")
        scheme = "dynamic" if scales == "NO_SCALES" else "static"
        return {"quant_method": "fp8", "activation_scheme": scheme}
    method = str(stated.get("quant_method") or "").lower().replace("_", "-")
    if method != "compressed-tensors":
        params.fail(
            "quantization",
            f"{shown(stated.values)}: vLLM 0.32 has no class for it; it takes qformat_weight "
            "fp8_e4m3, and compressed-tensors",
        )
    return {**stated.values, "quant_method": method}


def _require_not_hidden(params: ConfigFile, config: ConfigFile) -> None:
    """Refuse a key that states nothing, before one of config.json that states a quantisation.

    vLLM would take the weights for unquantised: a key of params.json goes before that of
    config.json, whatever its value (configs/mistral.py, `adapt_config_dict`).
    """
    for key in _HIDDEN:
        stated, nothing = config.get(key), params.get(key)
        if stated and key in params.values and not nothing:
            params.fail(
                key,
                f"is {shown(nothing)}, and {config.where} has {shown(stated)} there: {_WHERE}, and "
                f"takes the weights for unquantised; take the key out of {PARAMS}, or out of "
                "config.json if they are",
            )


def _window(params: ConfigFile, layers: Any) -> dict[str, Any]:
    """The windows of layers. Source: configs/mistral.py, `_remap_mistral_sliding_window`."""
    window = params.get("sliding_window")
    if not window or not isinstance(layers, int):
        return {}
    if isinstance(window, list):
        sizes = {size for size in window if isinstance(size, int)}
        if any(size is not None and not isinstance(size, int) for size in window):
            params.fail("sliding_window", f"{shown(window)} has more than numbers and nulls")
        if len(sizes) > 1 or layers % len(window):
            params.fail(
                "sliding_window",
                f"{shown(window)}: vLLM 0.32 takes one size, and as many entries as go into "
                f"{layers} layers",
            )
        slides = [size is not None for size in window] * (layers // len(window))
        kinds = ["sliding_attention" if one else "full_attention" for one in slides]
        return {"sliding_window": next(iter(sizes), None) or None, "layer_types": kinds}
    if isinstance(window, bool) or not isinstance(window, int) or params.get("layer_types"):
        params.fail("sliding_window", f"{shown(window)}: vLLM 0.32 takes a number, or a list alone")
    return {"layer_types": ["sliding_attention"] * layers}


def _longest(params: ConfigFile, config: ConfigFile | None) -> dict[str, Any]:
    """The longest sequence: vLLM takes the lower of two keys.

    Source: transformers_utils/config.py, `_maybe_retrieve_max_pos_from_hf`.
    """
    longest = params.optional_integer(_LONGEST, high=1 << 30)
    lower = params.optional_integer("max_seq_len", high=1 << 30)
    if longest is None:
        longest = (
            _DEFAULT_LONGEST if config is None else config.optional_integer(_LONGEST, high=1 << 30)
        )
    if longest is None:
        if lower is not None:
            params.fail("max_seq_len", f"is {lower:,}, and no file states {_LONGEST} beside it")
        return {}  # config.json's class has a default
    return {_LONGEST: longest if lower is None else min(longest, lower)}


def _require_known(params: ConfigFile, config: ConfigFile | None) -> None:
    """Refuse what vLLM builds as a class that the planner does not read."""
    if params.get("qk_nope_head_dim") or params.get("model_type") == "mamba":
        key = "qk_nope_head_dim" if params.get("qk_nope_head_dim") else "model_type"
        params.fail(key, "vLLM 0.32 builds another class than Mistral's of it: not planned yet")
    routed = params.section("moe")
    if routed is not None and routed.get("num_shared_experts"):
        params.fail("moe", "vLLM 0.32 builds MistralLarge3ForCausalLM of it: not planned yet")
    if config is None:
        for key in ("moe", "vision_encoder", "multimodal"):
            if params.get(key):
                params.fail(key, "is planned with a config.json beside it only")
    elif not any(name in str(config.get("architectures")) for name in ("istral", "ixtral", "lama")):
        params.fail("architectures", f"{_WHERE}, and builds Mistral's class; config.json differs")


def _require_sizes(params: ConfigFile, config: ConfigFile) -> None:
    """Refuse a config.json of another model than the params.json that vLLM reads."""
    inner = config.get("text_config")
    text: Mapping[str, Any] = inner if isinstance(inner, dict) else config.values
    named = {name: key if key in params.values else name for key, name in _SIZES.items()}
    pairs = [(key, params.get(key), name, text.get(name)) for name, key in named.items()]
    stated = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    tied = None if stated is None else bool(stated)
    routed = any(text.get(name) for name in _EXPERTS)
    pairs.append(
        ("tied_embeddings", bool(params.get("tied_embeddings")), "tie_word_embeddings", tied)
    )
    if config.values:
        pairs.append(("moe", bool(params.get("moe")), "routed experts", routed))
    stated_experts = params.section("moe")
    if stated_experts is not None:
        number = next((text.get(name) for name in _EXPERTS if text.get(name)), None)
        pairs.append(("moe.num_experts", stated_experts.get("num_experts"), "experts", number))
    for key, read, name, planned in pairs:
        if read is not None and planned is not None and read != planned:
            params.fail(
                key,
                f"is {shown(read)}, and config.json has {name} {shown(planned)}: {_WHERE}; correct "
                "one, or give the config.json alone in a directory",
            )
