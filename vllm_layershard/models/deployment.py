"""Deployment: a parallel layout with or without expert parallelism."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_layershard.errors import PlanError
from vllm_layershard.plan import ParallelLayout

MAX_RANKS = 4096
"""More ranks than any one deployment has; more than this is a slip of the pen."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """How a model is laid out over ranks. `ep` is `vllm serve --enable-expert-parallel`.

    `exchange` names row-parallel linears that every tensor-parallel rank holds whole: the ranks
    exchange tokens before one, and each computes its share of them. `ffn` data-parallel ranks split
    each dense MLP of a model with routed experts; 1: none is split. `gpus_reach`: all ranks are on
    GPUs of one node that map each other's memory.

    Of a deployment that is asked for, only the sizes in `layout` count: `shard_model` decides
    lockstep and movement (plan/sharing.py), and its result has the complete layout.
    """

    layout: ParallelLayout
    ep: bool = False
    exchange: tuple[str, ...] = ()
    ffn: int = 1
    gpus_reach: bool = False

    def __post_init__(self) -> None:
        if self.layout.world_size > MAX_RANKS:
            raise PlanError(
                f"{self.layout.world_size:,} ranks: the planner goes up to {MAX_RANKS:,}; "
                "lower tp, dp, pcp or pp"
            )

    @property
    def expert_ranks(self) -> int:
        """How many ranks share one layer's routed experts: DP x PCP x TP.

        With EP each holds whole experts, without it a slice of every expert.
        Source: vLLM 0.32, fused_moe/config.py, `FusedMoEParallelConfig.make`.
        """
        return self.layout.dp * self.layout.pcp * self.layout.tp

    @property
    def sequence_parallel_moe(self) -> bool:
        """Whether shared experts are whole on every TP rank, which then split the tokens.

        Source: vLLM 0.32, config/parallel.py, `use_sequence_parallel_moe`, with the default
        all-to-all backend.
        """
        return self.ep and self.layout.tp > 1 and self.layout.dp > 1

    def expert_rank(self, rank: int) -> int:
        """The place of a global rank among those that share its stage's experts."""
        within_stage = self.layout.pcp * self.layout.tp
        dp_rank = rank // (within_stage * self.layout.pp)
        return dp_rank * within_stage + rank % within_stage
