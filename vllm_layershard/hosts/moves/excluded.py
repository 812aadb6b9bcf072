"""What a movement of tokens cannot stand beside, as far as the configuration tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_layershard.config import KEY, LayerShardConfig
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.exclusions import leaving_tokens_behind, splitting_tokens
from vllm_layershard.plan import ParallelLayout
from vllm_layershard.plan.move import require_agreed_counts, unmovable

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def check_move(vllm_config: VllmConfig, config: LayerShardConfig, layout: ParallelLayout) -> None:
    """Refuse what keeps ranks from deciding alike, or from running the same linears.

    Raises:
        PlanError: the ranks do not know each other's tokens.
        HostError: names the setting, and what to do.
    """
    if config.move == "weights":
        return
    require_agreed_counts(layout, config)
    on_npu = vllm_config.device_config.device_type == "npu"
    for setting in leaving_tokens_behind(vllm_config):
        raise HostError(
            f"{KEY}.move = {config.move!r}: with {setting} the last layers run on fewer tokens "
            "than the ranks have agreed on; leave out one of the two"
        )
    for why in unmovable(layout, config, splitting_tokens(vllm_config), on_npu=on_npu):
        raise HostError(why)
