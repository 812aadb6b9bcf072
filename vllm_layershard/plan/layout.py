"""ParallelLayout: which ranks hold the same copy of a linear, and which layers a stage holds."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_layershard.config import KEY, TransportName
from vllm_layershard.errors import PlanError


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """Sizes of the parallel dimensions of one deployment, in vLLM's rank order DP x PP x PCP x TP.

    `dp_lockstep`: data-parallel ranks run every forward together. vLLM does so for models with
    routed experts. Replicas of a dense model are engines that never wait for each other. They share
    only where `one_sided` says that ranks fetch by themselves what they need. With `engines_apart`
    they share nothing with each other even then: only the ranks of one engine share.
    `dcp`: decode-context parallelism, which adds no rank: without PCP its groups are neighbouring
    tensor-parallel ranks, which may hold the same part of a query projection.
    `pairs_pull`: groups of two ranks fetch by themselves, too, where larger ones broadcast.
    Source: vLLM 0.32, distributed/parallel_state.py, `initialize_model_parallel`.
    """

    tp: int = 1
    dp: int = 1
    pcp: int = 1
    pp: int = 1
    dp_lockstep: bool = True
    one_sided: bool = False
    engines_apart: bool = False
    dcp: int = 1
    pairs_pull: bool = False

    def __post_init__(self) -> None:
        for name in ("tp", "dp", "pcp", "pp", "dcp"):
            size = getattr(self, name)
            if size < 1:
                raise PlanError(f"{name} = {size}: a parallel size is at least 1")

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self.dp * self.pp * self.pcp * self.tp

    @property
    def in_lockstep(self) -> bool:
        """Whether all ranks of a group run every forward together."""
        return self.engines_apart or run_in_lockstep(self.dp, dp_lockstep=self.dp_lockstep)

    def transport_of(self, group_size: int) -> TransportName:
        """How weights move between the ranks of a group of this size."""
        pulls = self.one_sided or (self.pairs_pull and group_size == 2)
        return "pull" if pulls else "broadcast"

    @property
    def dp_shares(self) -> bool:
        """Whether data-parallel ranks share with each other."""
        return self.dp_lockstep or (self.one_sided and not self.engines_apart)

    @property
    def kinds(self) -> tuple[tuple[bool, int], ...]:
        """How linears may lie over tensor-parallel ranks: `tp_replicated` and `tp_copies` of each.

        Those that are split come first, whole ones last.
        """
        by_dcp = self.pcp == 1 and self.dcp > 1 and self.tp % self.dcp == 0
        return ((False, 1), *([(False, self.dcp)] if by_dcp else []), (True, 1))

    def group_size(self, tp_replicated: bool, tp_copies: int = 1) -> int:
        """How many ranks that share hold the same copy of a linear."""
        together = self.dp if self.dp_shares else 1
        return together * self.pcp * (self.tp if tp_replicated else tp_copies)

    def pulls_over(self, *, several_nodes: bool) -> bool:
        """Whether ranks that pull would be on several nodes: a server refuses all of these.

        It does so wherever the groups lie. Ranks are launched, and find each other's memory, as
        one node's; a server is not told which of them are on which node.
        """
        return several_nodes and self.one_sided

    def require_peers(self) -> None:
        """Refuse a layout in which no rank has another to share with.

        Raises:
            PlanError: says why, and which parallelism would do.
        """
        if self.group_size(tp_replicated=True) > 1:
            return
        if self.dp > 1:
            raise PlanError(
                f"{KEY}: the {self.dp} data-parallel ranks of a dense model are engines of their "
                "own, which never wait for each other, and the broadcast transport needs lockstep; "
                "use transport 'pull' or 'auto'"
            )
        raise PlanError(
            f"{KEY}: a group of one rank has nobody to share with; use data, prefill-context or "
            "tensor parallelism of at least 2 (for example --data-parallel-size 2), or do not shard"
        )

    def stage_of(self, rank: int) -> int:
        """The pipeline stage of a global rank."""
        return rank // (self.pcp * self.tp) % self.pp

    def groups(self, tp_replicated: bool, tp_copies: int = 1) -> tuple[tuple[int, ...], ...]:
        """The global ranks of every group of equal copies; a rank's place in it is its group rank.

        A linear split by tensor parallelism has its copies over DP x PCP, and over `tp_copies`
        neighbours; one that is not over DP x PCP x TP. Pipeline stages never share.
        """
        neighbours = self.tp if tp_replicated else tp_copies
        assert self.tp % neighbours == 0, f"{neighbours} copies over {self.tp} ranks"

        def rank(dp: int, pp: int, pcp: int, tp: int) -> int:
            return ((dp * self.pp + pp) * self.pcp + pcp) * self.tp + tp

        every_dp = range(self.dp)
        together = [every_dp] if self.dp_shares else [range(dp, dp + 1) for dp in every_dp]
        alike = [range(tp, tp + neighbours) for tp in range(0, self.tp, neighbours)]
        return tuple(
            tuple(rank(dp, pp, pcp, tp) for dp in dps for pcp in range(self.pcp) for tp in tps)
            for dps in together
            for pp in range(self.pp)
            for tps in alike
        )


def run_in_lockstep(dp: int, *, dp_lockstep: bool) -> bool:
    """Whether all ranks of a deployment run every forward together: one engine always does."""
    return dp_lockstep or dp == 1


def stage_layers(num_layers: int, pp: int) -> tuple[range, ...]:
    """The absolute layer indices of each pipeline stage, as vLLM splits them by default.

    The remainder goes one each to the stages before the last, from the back.
    Source: vLLM 0.32, distributed/utils.py, `get_pp_indices`.

    Raises:
        PlanError: more stages than layers.
    """
    if pp > num_layers:
        raise PlanError(f"pp = {pp}: a model of {num_layers} layers has at most that many stages")
    sizes = [num_layers // pp] * pp
    for i in range(2, num_layers % pp + 2):
        sizes[-i] += 1
    starts = [sum(sizes[:stage]) for stage in range(pp)]
    return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))
