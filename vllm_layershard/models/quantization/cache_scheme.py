"""The cache that a section asks for where nobody names one, and those that vLLM refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vllm_layershard.models.cache.kv_cache import StoredCache
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_SCHEME: Final = "kv_cache_scheme"
_ALGORITHM: Final = "kv_cache_quant_algo"
_ALGORITHMS: Final = {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}
"""Model Optimizer's names -> vLLM's. Source: vLLM 0.32, utils/torch_utils.py,
`MODELOPT_TO_VLLM_KV_CACHE_DTYPE_MAP`."""

_BY_HEAD: Final = "attn_head"

_ELSEWHERE: Final = (": text_config: quantization_config", ": compression_config")


def stored_cache_of(section: ConfigFile, method: str, *, latent: bool) -> StoredCache | None:
    """What a section of this method asks for; None: the model's dtype.

    Raises:
        ModelError: names the key that vLLM refuses.
    """
    reader = _READERS.get(method)
    return reader(section, latent) if reader is not None else None


def _of_modelopt(section: ConfigFile, latent: bool) -> StoredCache | None:
    """vLLM resolves it from the quantization_config of the whole config alone.

    Source: vLLM 0.32, utils/torch_utils.py, `get_kv_cache_quant_algo_string`, and
    `resolve_kv_cache_dtype_string`.
    """
    if section.where.endswith(_ELSEWHERE):
        return None
    places = (section.section("quantization") or section, section)
    stated = ((place, key) for key in (_SCHEME, _ALGORITHM) for place in places if place.get(key))
    place, key = next(stated, (section, _ALGORITHM))
    asked = place.get(key)
    if asked is not None and not isinstance(asked, (str, Mapping)):
        place.fail(key, f"{shown(asked)} is neither a string nor an object")
    algorithm = _algorithm(asked) if isinstance(asked, Mapping) else (asked or "").lower()
    dtype = _ALGORITHMS.get(algorithm)
    return StoredCache(dtype, f"{place.where}: {key}") if dtype is not None else None


def _algorithm(scheme: Mapping[str, object]) -> str:
    """What vLLM takes a scheme of Model Optimizer's for; others are the model's dtype to it."""
    if scheme.get("type") != "float":
        return ""
    if scheme.get("dynamic") is False and scheme.get("num_bits") == 8:
        return "fp8"
    return "nvfp4" if scheme.get("num_bits") == 4 else ""


def _of_compressed_tensors(section: ConfigFile, latent: bool) -> StoredCache | None:
    """MLA does not look at it.

    Source: vLLM 0.32, layers/attention/attention.py, `Attention.__init__`; compressed_tensors.py,
    `CompressedTensorsKVCacheMethod.validate_kv_cache_scheme`.
    """
    scheme = section.get(_SCHEME)
    if scheme is None or latent:
        return None
    if not isinstance(scheme, Mapping):
        section.fail(_SCHEME, f"{shown(scheme)} is no object")
    strategies = ("tensor", _BY_HEAD)
    for key, taken, remedy in (
        ("type", ("float",), "'float'"),
        ("num_bits", (8,), "8"),
        ("strategy", strategies, " or ".join(map(repr, strategies))),
    ):
        if scheme.get(key) not in taken:
            section.fail(f"{_SCHEME}: {key}", f"is {shown(scheme.get(key))}; {_TAKES} {remedy}")
    if not scheme.get("symmetric"):
        asked = shown(scheme.get("symmetric"))
        section.fail(f"{_SCHEME}: symmetric", f"is {asked}; {_TAKES} true")
    by_head = scheme["strategy"] == _BY_HEAD
    return StoredCache("fp8", f"{section.where}: {_SCHEME}", by_head)


_TAKES: Final = "for a cache vLLM 0.32 takes only"


def _of_quark(section: ConfigFile, latent: bool) -> None:
    """Scales alone: the cache stays in the model's dtype.

    Source: vLLM 0.32, quark.py, `QuarkConfig.from_config` and `validate_kv_cache_config`.
    """
    export = section.section("export")
    names = export.strings("kv_cache_group") if export is not None else ()
    layers = section.section("layer_quant_config") or ConfigFile(section.where, {})
    stated = [layer for name in names if (layer := layers.section(name)) is not None]
    if not names:
        return
    outputs = [layer.section("output_tensors") for layer in stated]
    if not outputs or outputs[0] is None:
        section.fail(
            "export: kv_cache_group",
            "names no module with output_tensors in layer_quant_config, and vLLM 0.32 asks for it",
        )
    if any(other is None or other.values != outputs[0].values for other in outputs):
        section.fail("layer_quant_config", "states several output_tensors of kv_cache_group")
    for key, taken in (("dtype", "fp8_e4m3"), ("qscheme", "per_tensor")):
        if not latent and outputs[0].get(key) != taken:
            asked = shown(outputs[0].get(key))
            outputs[0].fail(key, f"is {asked}; {_TAKES} '{taken}'")


_READERS: Final[Mapping[str, Callable[[ConfigFile, bool], StoredCache | None]]] = {
    "modelopt": _of_modelopt,
    "compressed-tensors": _of_compressed_tensors,
    "quark": _of_quark,
}
