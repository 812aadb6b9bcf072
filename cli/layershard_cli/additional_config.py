"""Reads what a user means to give as `--additional-config`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from vllm_layershard.bounded_file import UnreadableError, json_fault, read_named
from vllm_layershard.config import KEY, OPTIONS, LayerShardConfig
from vllm_layershard.errors import ConfigError
from vllm_layershard.ffn_config import FFN_KEY
from vllm_layershard.near_keys import lost_options, near_options, slips
from vllm_layershard.planner.options import names_of
from vllm_layershard.schema import validated, validated_ffn

_MAX_BYTES = 1 << 20


class Additional(NamedTuple):
    """What an additional-config asks for: sharding, a split of dense MLPs, or both.

    `notes` has one where the value stands alone: vLLM would not see it. It has one for each of our
    keys that is not there, while one near it is, and one of what is nearly an option beside them.
    `given` is the whole object.
    """

    config: LayerShardConfig | None
    ffn_tp: int | None = None
    notes: tuple[str, ...] = ()
    given: Mapping[str, Any] = MappingProxyType({})


def read_additional(text: str) -> Additional:
    """JSON, or `@file` that holds it: the whole object, or the value of `layer_sharding` alone.

    Raises:
        ConfigError: unreadable, not JSON, or not valid.
    """
    value = _parsed(_contents(text[1:]) if text.startswith("@") else text)
    if isinstance(value, dict) and (KEY in value or FFN_KEY in value):
        if lost := lost_options(value):
            raise ConfigError(lost)
        return Additional(
            validated(value[KEY]) if KEY in value else None,
            validated_ffn(value[FFN_KEY]).size if FFN_KEY in value else None,
            (*slips(value), *filter(None, [near_options(value)])),
            value,
        )
    if isinstance(value, dict) and not value.keys() & set(OPTIONS):
        if near := slips(value):
            raise ConfigError("; ".join(near))
        raise ConfigError(
            f"the additional config has no key {KEY!r}, so nothing would be sharded; write for "
            f'example \'{{"{KEY}": ["o_proj", "q_b_proj"]}}\''
        )
    note = (
        f"this is the value of {KEY!r} alone; vLLM wants --additional-config '{{\"{KEY}\": ...}}'"
    )
    return Additional(validated(value), notes=(note,))


def require_served(
    given: Mapping[str, Any], config: LayerShardConfig | None, ffn_tp: int | None
) -> None:
    """Refuse keys that the plugin would refuse beside ours.

    Raises:
        ConfigError: names them, and what to do.
    """
    from vllm_layershard.plan.ascend_keys import excluded  # seldom asked for

    for why in excluded(given, config, splits_mlps=ffn_tp is not None and ffn_tp > 1):
        raise ConfigError(why)


def require_sharding(**flags: Any) -> None:
    """Refuse flags on sharding where only a split of dense MLPs is asked for.

    Raises:
        ConfigError: names those that are given.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in flags.items() if value]
    if given:
        raise ConfigError(
            f"{', '.join(given)}: goes with the key {KEY}, which the additional config has not; "
            "leave it out"
        )


def splitting(stated: int | None, ffn_tp: int) -> int:
    """The size that `--ffn-tp` asks for, in place of none.

    Raises:
        ConfigError: the additional config says another itself.
    """
    if stated not in (None, ffn_tp):
        raise ConfigError(
            f"--ffn-tp {ffn_tp}: the additional config says {stated} itself; leave one of the two "
            "out"
        )
    return ffn_tp


def exchanging(config: LayerShardConfig, names: Sequence[str]) -> LayerShardConfig:
    """The configuration with the linears that `--token-exchange` names, in place of none.

    Raises:
        ConfigError: it names others itself, or a name that is not among its layers.
    """
    asked = tuple(names_of(names))
    if config.token_exchange not in ((), asked):
        raise ConfigError(
            f"--token-exchange {','.join(asked)}: the additional config says "
            f"{','.join(config.token_exchange)} itself; leave one of the two out"
        )
    return replace(config, token_exchange=asked)


def _contents(path: str) -> str:
    try:
        raw = read_named(path, _MAX_BYTES)
    except UnreadableError as error:
        raise ConfigError(
            f"@{path}: {error}; give the path of a file after the @, or the JSON itself without one"
        ) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"@{path}: is not UTF-8 text (byte {error.start})") from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        deep = "is not valid JSON: it is nested too deeply"
        what = json_fault(error) if isinstance(error, ValueError) else deep
        raise ConfigError(
            f"the additional config {what}; write for example "
            f'\'{{"{KEY}": ["o_proj", "q_b_proj"]}}\''
        ) from None
