"""What vllm-ascend's keys of the same `additional_config` exclude of what ours ask for.

The plugin refuses it at the start, and `layershard check` before, in the same words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from vllm_layershard.config import KEY, LayerShardConfig, short
from vllm_layershard.ffn_config import FFN_KEY
from vllm_layershard.plan.move import on_shards

_FLASHCOMM1: Final = "enable_flashcomm1"
_FINE_GRAINED: Final = "finegrained_tp_config"
_SPLIT: Final = {
    "oproj_tensor_parallel_size": ("o_proj",),
    "mlp_tensor_parallel_size": ("gate_up_proj", "down_proj"),
}
"""What vllm-ascend splits over groups of its own. Source: vllm-ascend 0.23, ops/linear_op.py."""


def splitting_tokens(given: object) -> list[str]:
    """The keys that have layers run on shards of the tokens."""
    return [_FLASHCOMM1] if isinstance(given, dict) and given.get(_FLASHCOMM1) else []


def of_linears(given: object, config: LayerShardConfig) -> Iterator[str]:
    """Of linears that vllm-ascend splits over data-parallel ranks: their copies are none."""
    for key, linears in _SPLIT.items():
        size = _fine_grained_size(given, key)
        split = [name for name in config.layers if name.split(".")[-1] in linears]
        if size and split:
            yield (
                f"{KEY}: {_FINE_GRAINED}.{key} = {short(size)} splits {', '.join(split)} over "
                "data-parallel ranks, which then hold no copies of it; use one of the two"
            )


def of_exchange(settings: list[str], config: LayerShardConfig) -> Iterator[str]:
    """Of an exchange of tokens beside `settings`, which have layers run on shards of them."""
    for setting in settings if config.token_exchange else ():
        yield (
            f"{KEY}.token_exchange: with {setting} the layers run on shards of the tokens, and the "
            "exchange is not served there yet; leave out one of the two"
        )


def excluding_parts(given: object, splitting: list[str]) -> dict[str, str]:
    """The settings that exclude dense MLPs in parts, each with why.

    `splitting` names what has layers run on shards of the tokens.
    """
    shards = "tokens are on shards there, whose numbers the ranks do not tell each other"
    found = dict.fromkeys(splitting, shards)
    key = "mlp_tensor_parallel_size"
    if size := _fine_grained_size(given, key):
        found[f"{_FINE_GRAINED}.{key} = {short(size)}"] = "both would split the same MLPs"
    return found


def of_parts(excluding: dict[str, str]) -> Iterator[str]:
    """Of dense MLPs in parts beside settings that exclude them, each with why."""
    for setting, why in excluding.items():
        yield f"{FFN_KEY}: cannot be combined with {setting}: {why}; use one of the two"


def excluded(given: object, config: LayerShardConfig | None, *, splits_mlps: bool) -> Iterator[str]:
    """All that `given`, an additional config, has the plugin refuse of these; none where nothing.

    `splits_mlps`: whether dense MLPs are to be in parts.
    """
    splitting = splitting_tokens(given)
    if config is not None:
        yield from of_exchange(splitting, config)
        yield from on_shards(splitting, config)
        yield from of_linears(given, config)
    if splits_mlps:
        yield from of_parts(excluding_parts(given, splitting))


def _fine_grained_size(given: object, key: str) -> Any:
    """What `finegrained_tp_config` says of `key`; None or 0: nothing is split."""
    stated = given.get(_FINE_GRAINED) if isinstance(given, dict) else None
    return stated.get(key) if isinstance(stated, dict) else None
