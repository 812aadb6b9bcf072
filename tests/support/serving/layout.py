"""Layout: how a server's ranks are laid out, for `vllm serve` and for the planner alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Parallel sizes; with two `nodes` the data-parallel ranks lie on two that meet on loopback."""

    dp: int = 1
    tp: int = 1
    pp: int = 1
    nodes: int = 1

    @property
    def world_size(self) -> int:
        return self.dp * self.tp * self.pp

    @property
    def serving(self) -> tuple[str, ...]:
        """Arguments of `vllm serve`."""
        return (
            "--data-parallel-size", str(self.dp),
            "--tensor-parallel-size", str(self.tp),
            "--pipeline-parallel-size", str(self.pp),
        )  # fmt: skip

    @property
    def planning(self) -> tuple[str, ...]:
        """Flags of `layershard plan`."""
        return ("--dp", str(self.dp), "--tp", str(self.tp), "--pp", str(self.pp), "--no-ep")

    def stage_of(self, rank: int) -> int:
        """The pipeline stage of a global rank; vLLM's order is DP x PP x TP."""
        return rank // self.tp % self.pp


TWO_RANKS = Layout(dp=2)
