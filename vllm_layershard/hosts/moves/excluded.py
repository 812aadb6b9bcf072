"""What a movement of tokens cannot stand beside, as far as the configuration tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.exclusions import splitting_tokens
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
    for why in unmovable(layout, config, splitting_tokens(vllm_config), on_npu=on_npu):
        raise HostError(why)
