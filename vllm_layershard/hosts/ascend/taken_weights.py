"""Weights that an attention of vllm-ascend's takes out of their linears, past any wait."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_STATIC: Final = "AscendW8A8LinearMethod"
_DYNAMIC: Final = "AscendW8A8DynamicLinearMethod"
_MXFP8: Final = "AscendW8A8MXFP8DynamicLinearMethod"
"""vllm-ascend's classes of a quantised linear, by name: it is not imported."""


class _Taker(NamedTuple):
    """What takes a weight, and what the user can do beside leaving the linear out."""

    name: str
    remedy: str = ""


_MLAPO: Final = _Taker(
    "MLAPO",
    'set "enable_mlapo": false in --additional-config (before vllm-ascend 0.20 '
    "VLLM_ASCEND_ENABLE_MLAPO=0), or ",
)
_PROLOG: Final = _Taker("MLA Prolog V3 (where the cache comes from another instance)")
_EIGHT_BIT_CACHE: Final = _Taker("attention over an eight-bit cache (fa_quant_type)")


def check_not_taken(vllm_config: VllmConfig, modules: Sequence[Any]) -> None:
    """Refuse linears of which an attention makes a weight of its own once all are loaded.

    On all ranks but the owner it would make it of a slot, into which no layer has come yet, and
    compute decodes from that without a word.
    Source: vllm-ascend 182b75ea84, attention/sfa_v1.py and mla_v1.py,
    `process_weights_after_loading`; of 0.18 to 0.25 the same files.

    Raises:
        HostError: names the first of them.
    """
    named = {id(module): module for module in modules}
    for layer in vllm_config.compilation_config.static_forward_context.values():
        for linear, taker in _taken(getattr(layer, "impl", None)):
            if id(linear) in named:
                raise HostError(
                    f"{KEY}: {linear.prefix}: vllm-ascend's {taker.name} takes the weight "
                    "once all are loaded, when most ranks have none of it, and would decode with "
                    f"that; {taker.remedy}leave it out"
                )


def _taken(impl: Any) -> Iterator[tuple[Any, _Taker]]:
    """The linears of an attention that it takes weights of, each with what does."""
    fused, queries = (getattr(impl, name, None) for name in ("fused_qkv_a_proj", "q_proj"))
    if fused is None:
        return
    kinds = _kinds(fused)
    if getattr(impl, "enable_mlapo", False) and (kinds & {_STATIC, _MXFP8} or _on_a5()):
        yield from ((fused, _MLAPO), (queries, _MLAPO))
    if getattr(impl, "fa_quant_layer", False):
        yield from ((fused, _EIGHT_BIT_CACHE), (queries, _EIGHT_BIT_CACHE))
    if _takes_prolog(impl, kinds):
        indexer = getattr(impl, "wq_b", None)
        yield from ((linear, _PROLOG) for linear in (fused, queries, indexer))
    elif _is_decoder(impl):
        yield fused, _PROLOG  # a sharded one looks unquantised, and it takes those


def _takes_prolog(impl: Any, kinds: frozenset[str]) -> bool:
    """Whether a sparse attention has it; 0.23 and 0.24 say so by a flag."""
    if getattr(impl, "enable_sfa_prolog_v3", False):
        return True
    packed = getattr(impl, "enable_sparse_sfa_c8", False)
    return _is_decoder(impl) and (not kinds or _MXFP8 in kinds or (packed and _DYNAMIC in kinds))


def _is_decoder(impl: Any) -> bool:
    """Whether it is a sparse attention of 0.25 or later that takes its cache from another."""
    consumes = getattr(impl, "is_kv_consumer", False) and not getattr(impl, "is_kv_producer", False)
    return consumes and hasattr(impl, "preprocess_type")


def _kinds(linear: Any) -> frozenset[str]:
    """The classes of what quantises a linear, by name; none where nothing does."""
    scheme = getattr(linear.quant_method, "quant_method", None)
    return frozenset() if scheme is None else frozenset(c.__name__ for c in type(scheme).__mro__)


def _on_a5() -> bool:
    """Whether the NPU is of the generation on which 0.22 to 0.24 take unquantised ones, too."""
    own = getattr(sys.modules.get("vllm_ascend.utils"), "get_ascend_device_type", None)
    return own is not None and own().name == "A5"
