"""What a movement of tokens cannot stand beside, as far as the configuration tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_layershard.config import KEY, LayerShardConfig
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.exclusions import splitting_tokens
from vllm_layershard.plan import ParallelLayout
from vllm_layershard.plan.move import require_agreed_counts

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
    for setting in splitting_tokens(vllm_config):
        raise HostError(
            f"{KEY}.move = {config.move!r}: with {setting} linears run on shards of the tokens, "
            "whose numbers the ranks do not tell each other; leave out one of the two"
        )
    if vllm_config.device_config.device_type == "npu" and layout.dp > 1:
        # Source: vllm-ascend 0.23, attention/mla_v1.py and sfa_v1.py: `attn_metadata is None`.
        raise HostError(
            f"{KEY}.move = {config.move!r}: vllm-ascend's dummy batches leave out attention's "
            "linears, for which ranks that are busy would wait; use move 'weights', or tensor "
            "parallelism alone"
        )
