"""ParallelLayout: which ranks hold the same copy of a linear, and which layers a stage holds."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_layershard.errors import PlanError


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """Sizes of the parallel dimensions of one deployment, in vLLM's rank order DP x PP x PCP x TP.

    Source: vLLM 0.32, distributed/parallel_state.py, `initialize_model_parallel`.
    """

    tp: int = 1
    dp: int = 1
    pcp: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "dp", "pcp", "pp"):
            size = getattr(self, name)
            if size < 1:
                raise PlanError(f"{name} = {size}: a parallel size is at least 1")

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self.dp * self.pp * self.pcp * self.tp

    def group_size(self, tp_replicated: bool) -> int:
        """How many ranks hold the same copy of a linear."""
        return self.dp * self.pcp * (self.tp if tp_replicated else 1)

    def stage_of(self, rank: int) -> int:
        """The pipeline stage of a global rank."""
        return rank // (self.pcp * self.tp) % self.pp

    def groups(self, tp_replicated: bool) -> tuple[tuple[int, ...], ...]:
        """The global ranks of every group of equal copies; a rank's place in it is its group rank.

        A linear split by tensor parallelism has its copies over DP x PCP, one that is not over
        DP x PCP x TP; pipeline stages never share.
        """

        def rank(dp: int, pp: int, pcp: int, tp: int) -> int:
            return ((dp * self.pp + pp) * self.pcp + pcp) * self.tp + tp

        outer = (
            [(pp, None) for pp in range(self.pp)]
            if tp_replicated
            else [(pp, tp) for pp in range(self.pp) for tp in range(self.tp)]
        )
        return tuple(
            tuple(
                rank(dp, pp, pcp, tp)
                for dp in range(self.dp)
                for pcp in range(self.pcp)
                for tp in (range(self.tp) if fixed_tp is None else (fixed_tp,))
            )
            for pp, fixed_tp in outer
        )


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
