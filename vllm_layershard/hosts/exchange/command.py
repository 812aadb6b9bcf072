"""FlashComm2's published command: an environment variable beside the key asks for an exchange."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from vllm.logger import init_logger

from vllm_layershard.config import KEY, LayerShardConfig, short
from vllm_layershard.errors import ConfigError

logger = init_logger(f"vllm.{__name__}")

VARIABLE: Final = "VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE"
"""Over how many ranks FlashComm2 splits o_proj: 1 keeps it whole on every rank, 0 is off.
Source: vllm-ascend 0.23, envs.py."""

_LAYERS: Final = ("o_proj",)
"""What FlashComm2 takes beside it. Source: vllm-ascend 0.23, utils.py."""


def with_published_command(stated: Any, config: LayerShardConfig, tp: int) -> LayerShardConfig:
    """The configuration that the key and the variable ask for together.

    `stated` is the key's value, from which `config` was read: what it says of `token_exchange`
    stands, whatever the variable holds. Effect: the log says once what was made of the variable.

    Raises:
        ConfigError: the variable holds a size that is not served, or `layers` are not o_proj alone.
    """
    value = os.environ.get(VARIABLE)
    if value is None or value.strip() == "0":
        return config
    if isinstance(stated, Mapping) and "token_exchange" in stated:
        if value.strip() == "1" and config.layers == config.token_exchange == _LAYERS:
            return config  # both ask for the same, as they do once it is written into the key
        logger.info_once("%s.token_exchange stands: %s is not read", KEY, VARIABLE)
        return config
    if value.strip() != "1":
        raise ConfigError(
            f"{VARIABLE} = {short(value)}: should be 1, with which o_proj is whole on every rank; "
            "0 or unset is off. Layer sharding takes back the memory for which more were split"
        )
    if config.layers != _LAYERS:
        raise ConfigError(
            f'{VARIABLE} = 1: needs {{"{KEY}": ["o_proj"]}}, and layers are '
            f"{short(list(config.layers))}; to shard others, too, unset it and write "
            f'"token_exchange": ["o_proj"] into {KEY}'
        )
    if tp == 1:
        logger.warning_once(
            "%s = 1: without tensor parallelism there is nothing to exchange; o_proj is sharded, "
            "and runs as before",
            VARIABLE,
        )
        return config
    logger.info_once(
        "%s = 1: the %s tensor-parallel ranks exchange tokens before o_proj, which is whole on "
        "each of them and sharded over all (%s.token_exchange)",
        VARIABLE,
        tp,
        KEY,
    )
    return replace(config, token_exchange=_LAYERS)


def stated_with_exchange(stated: Any, config: LayerShardConfig) -> Any:
    """The key's value, with the exchange that `config` has of the variable written into it.

    vLLM makes the key of its compile cache from what is stated, and knows no variable of ours.
    """
    if not config.token_exchange or (isinstance(stated, Mapping) and "token_exchange" in stated):
        return stated
    options = stated if isinstance(stated, Mapping) else {"layers": list(config.layers)}
    return {**options, "token_exchange": list(config.token_exchange)}
