"""Reads `quant_model_description.json`, where ModelSlim states every weight's precision."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain
from sys import intern
from typing import Final, NamedTuple

from vllm_layershard.models.scanner import Scanner, decoded
from vllm_layershard.models.sources.config_file import ConfigFile

DESCRIBED: Final = "described"
"""The key under which a `Description` stands in a config's `quantization_config`."""

_OF_CACHES: Final = (
    *("kv_cache_type", "kv_quant_type", "fa_quant_type", "indexer_quant_type"),
    *(".k_proj.kv_cache_scale", ".fa_k.scale", ".indexer.quant_type"),
)
"""How those keys end."""

_LATER_EXPERT = re.compile(r"\.experts\.[1-9]")


class Description(NamedTuple):
    """`kinds`: module -> precision of its weight, without experts beyond the first of each layer.

    `caches`: the keys that speak of the cache, with what they say. `model_type`: that of the config
    with which the decoder layers are built.
    """

    kinds: dict[str, str]
    caches: Mapping[str, str]
    model_type: str = ""


def described(raw: bytes, where: str, config: ConfigFile) -> ConfigFile:
    """What a description says, in the shape of a `quantization_config`. `config`: config.json.

    Raises:
        ModelError: it is too large, or is not a description.
    """
    found = parse_description(raw, where)._replace(model_type=_model_type_of(config))
    return ConfigFile(where, {"quant_method": "ascend", DESCRIBED: found})


def _model_type_of(config: ConfigFile) -> str:
    """Kimi-K2.5's language model is built as a model of its own, other wrappers' are not.

    Source: vLLM 0.32, kimi_k25.py, `init_vllm_registered_model`; transformers 5,
    configuration_kimi_k25.py, whose language model is a DeepSeek-V3 where it states no model_type.
    """
    model_type = config.string("model_type") or ""
    if model_type != "kimi_k25":
        return model_type
    text = config.section("text_config")
    return (text.string("model_type") if text is not None else None) or "deepseek_v3"


def parse_description(raw: bytes, where: str) -> Description:
    """What a description says of weights and of the cache.

    Raises:
        ModelError: not JSON, or not an object.
    """
    scanner = Scanner(decoded(raw, where), where)
    del raw  # the caller keeps no reference: the bytes and the text are not held together
    kinds: dict[str, str] = {}
    caches: dict[str, str] = {}
    for name in scanner.names():
        if scanner.peek() != '"':
            scanner.skip()
            continue
        for weight, kind in chain([(name, scanner.string())], scanner.run()):
            if weight.endswith((".weight", ".weight_packed")):
                weight = weight.removesuffix("_packed")
                if not _LATER_EXPERT.search(weight):
                    kinds[weight.removesuffix(".weight")] = intern(kind)
            elif weight.endswith(_OF_CACHES):
                caches[weight] = intern(kind)
    scanner.end()
    return Description(kinds, caches)
