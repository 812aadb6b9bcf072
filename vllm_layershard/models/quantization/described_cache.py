"""The cache that a description of ModelSlim's asks for, as vllm-ascend keeps it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from vllm_layershard.models.quantization.methods.modelslim import DESCRIBED, Description
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_STATED: Final = "kv_cache_type"
_ELSEWHERE: Final = "kv_quant_type"
_C8: Final = "C8"
_NONE: Final = frozenset({"", "FLOAT"})
_LAYER: Final = re.compile(r"\.(\d{1,9})\.")

_SCHEMES: Final = ("FAKQuant", "INT8_DYNAMIC")
"""Quantisations of an attention that vllm-ascend has a class for: methods/kv_c8.py."""


class DescribedCache(NamedTuple):
    """`layers`: those whose keys and values are eight-bit integers, whatever cache is asked for.

    `notes`: what is not counted, and where it would count.
    Source: vllm-ascend 182b75ea84, quantization/modelslim_config.py,
    `_add_kvcache_quant_metadata`; methods/kv_c8.py; quantization/utils.py, `enable_fa_quant`.
    """

    layers: frozenset[int]
    notes: tuple[str, ...]


def described_cache(section: ConfigFile, *, latent: bool) -> DescribedCache:
    """`latent`: MLA, whose cache has no keys and values of heads.

    Raises:
        ModelError: a quantisation of the cache that vllm-ascend has no class for.
    """
    found = section.get(DESCRIBED)
    assert isinstance(found, Description), "`read_ascend` has read it"
    stated = found.caches
    asked, scaled = stated.get(_STATED, ""), _layers(stated, "k_proj.kv_cache_scale")
    if scaled and asked != _C8:
        section.fail(
            _STATED,
            f"is {shown(asked)}, and scales of keys are stated: of quantised caches vllm-ascend "
            f"has {_C8} alone, under this key; correct it, or take the scales out",
        )
    if scaled and latent:
        section.fail(
            _STATED,
            f"is {_C8}, keys and values of heads in eight bits, and this model's MLA keeps none: "
            "vllm-ascend has no class for it",
        )
    notes = _of_attention(section, stated)
    key = next((key for key in (_STATED, _ELSEWHERE) if stated.get(key, "") not in _NONE), "")
    if scaled:
        said = "int8 keys and values in layers that state a scale"
        on = "an instance that hands its cache on (kv_producer) keeps the model's dtype instead"
        notes = (f"{section.where}: {key} {_C8}: {said}; {on}", *notes)
    elif key:
        said = "counted in the model's dtype, as vllm-ascend keeps it where no layer states a scale"
        notes = (f"{section.where}: {key} {shown(stated[key])}: {said}", *notes)
    return DescribedCache(scaled, notes)


def _of_attention(section: ConfigFile, stated: Mapping[str, str]) -> tuple[str, ...]:
    """What is stated of attentions, of which a server by itself keeps nothing in fewer bits.

    Raises:
        ModelError: a quantisation that vllm-ascend has no class for.
    """
    notes = []
    for key, leaf, where in (
        ("fa_quant_type", ".fa_k.scale", "but where it takes caches from another (kv_consumer)"),
        ("indexer_quant_type", ".indexer.quant_type", "without enable_sparse_li_c8"),
    ):
        enabled = stated.get(key, "") not in _NONE
        named = {value for name, value in stated.items() if name.endswith(leaf)}
        kinds = named if key.startswith("indexer") else {stated[key]} if enabled and named else ()
        for kind in sorted({*kinds} - {*_SCHEMES, *_NONE}):
            section.fail(
                key if enabled else leaf[1:],
                f"{shown(kind)}: vllm-ascend has no class for it, and no source states its bytes; "
                f"it has {' and '.join(_SCHEMES)}",
            )
        if enabled or named:
            notes.append(
                f"{section.where}: {key if enabled else leaf[1:]}: counted in the model's dtype, "
                f"which a server keeps {where}"
            )
    return tuple(notes)


def _layers(stated: Mapping[str, str], leaf: str) -> frozenset[int]:
    names = (name for name in stated if name.endswith(leaf))
    return frozenset(int(found[1]) for name in names if (found := _LAYER.search(name)))
