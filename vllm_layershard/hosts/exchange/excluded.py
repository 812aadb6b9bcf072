"""What a token exchange cannot stand beside, as far as the configuration tells."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vllm_layershard.config import KEY, LayerShardConfig
from vllm_layershard.errors import HostError, PlanError
from vllm_layershard.hosts.exchange.command import VARIABLE
from vllm_layershard.hosts.exclusions import splitting_tokens
from vllm_layershard.plan.ascend_keys import of_exchange

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def check_exchange(vllm_config: VllmConfig, config: LayerShardConfig) -> None:
    """Refuse an exchange that has no use, or that another setting would make wrong.

    Raises:
        PlanError: there is nothing to exchange.
        HostError: names the setting, and what to do.
    """
    _refuse_the_hosts_own()
    if not config.token_exchange:
        return
    parallel = vllm_config.parallel_config
    if parallel.tensor_parallel_size == 1:
        raise PlanError(
            f"{KEY}.token_exchange: without tensor parallelism every rank has all heads, and there "
            "is nothing to exchange; leave it out, or use --tensor-parallel-size 2 or more"
        )
    if vllm_config.lora_config is not None:
        raise HostError(
            f"{KEY}.token_exchange: an adapter's weights are split as the linear would be, and it "
            "is whole; leave out --enable-lora, or token_exchange"
        )
    for why in of_exchange(splitting_tokens(vllm_config), config):
        raise HostError(why)


def _refuse_the_hosts_own() -> None:
    """vllm-ascend had FlashComm2 itself (up to 0.24): both would make o_proj whole, and exchange.

    It is asked whether it is on: the variable was a key of its configuration, too.
    """
    own = getattr(sys.modules.get("vllm_ascend.utils"), "flashcomm2_enable", None)
    if own is not None and own():
        raise HostError(
            f"{KEY}: this vllm-ascend exchanges tokens before o_proj itself (FlashComm2), on groups"
            f' of its own; unset {VARIABLE} and write "token_exchange": ["o_proj"] into {KEY}, '
            "or leave layer sharding out"
        )
