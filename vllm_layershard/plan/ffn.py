"""FfnSplit: which ranks split the dense MLPs, which part each holds, and how many bytes it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from vllm_layershard.errors import PlanError
from vllm_layershard.ffn_config import FFN_KEY
from vllm_layershard.plan.layout import ParallelLayout
from vllm_layershard.plan.linear import Linear


class FfnBytes(NamedTuple):
    """Bytes of the dense MLPs on one rank: those that it holds, and those that it need not hold."""

    held: int
    saved: int


@dataclass(frozen=True, slots=True)
class FfnSplit:
    """Each dense MLP over `size` consecutive data-parallel ranks of a deployment.

    A group are ranks with the same tensor-parallel index in one pipeline stage. Each holds one of
    `parts` parts: the existing tensor-parallel size times `size`.

    Raises:
        PlanError: no such groups can be formed, or they would not run every forward together.
    """

    layout: ParallelLayout
    size: int

    def __post_init__(self) -> None:
        layout, size = self.layout, self.size
        if layout.dp == 1:
            raise PlanError(
                f"{FFN_KEY} = {size}: there is one data-parallel rank, and nobody to split with; "
                f"leave it out, or use --data-parallel-size {size}"
            )
        if not layout.dp_lockstep:
            raise PlanError(
                f"{FFN_KEY} = {size}: the {layout.dp} data-parallel ranks of a dense model are "
                "engines of their own, which never wait for each other; leave it out, or use "
                f"--tensor-parallel-size {size}"
            )
        if layout.dp % size:
            divisors = [str(n) for n in range(2, layout.dp + 1) if layout.dp % n == 0]
            raise PlanError(
                f"{FFN_KEY} = {size}: does not divide the {layout.dp} data-parallel ranks; choose "
                f"one of {', '.join(divisors)}"
            )
        if layout.pcp > 1:
            raise PlanError(
                f"{FFN_KEY} = {size}: prefill-context-parallel ranks have token counts of their "
                "own, on which data-parallel ranks do not agree; leave out one of the two"
            )

    @property
    def parts(self) -> int:
        """Into how many parts each MLP is split."""
        return self.layout.tp * self.size

    def part_of(self, rank: int) -> int:
        """Which part a global rank holds: a group's parts are those of one tensor-parallel rank."""
        layout = self.layout
        dp = rank // (layout.pp * layout.tp) % layout.dp
        return rank % layout.tp * self.size + dp % self.size

    def first_of(self, rank: int) -> int:
        """The data-parallel index of the first rank in a global rank's group."""
        dp = rank // (self.layout.pp * self.layout.tp) % self.layout.dp
        return dp - dp % self.size

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The global ranks of every group, in the order of their parts."""
        layout = self.layout
        return tuple(
            tuple((dp * layout.pp + pp) * layout.tp + tp for dp in range(first, first + self.size))
            for first in range(0, layout.dp, self.size)
            for pp in range(layout.pp)
            for tp in range(layout.tp)
        )

    def require_even(self, name: str, width: int, block: int = 1) -> None:
        """Refuse an MLP whose `width` columns (all ranks') give no even parts of whole blocks.

        Raises:
            PlanError: names the MLP and the sizes.
        """
        if width % (self.parts * block):
            blocks = f" of whole blocks of {block}" if block > 1 else ""
            by = f"tensor-parallel size {self.layout.tp} x {FFN_KEY} {self.size}"
            raise PlanError(
                f"{FFN_KEY}: {name} has an intermediate size of {width:,}, which gives no "
                f"{self.parts} even parts{blocks} ({by}); choose a smaller size"
            )

    def bytes_of(self, linears: Iterable[Linear]) -> FfnBytes:
        """Of these linears, as one rank holds them unsplit; every tensor of theirs is split."""
        whole = sum(tensor.nbytes for linear in linears for tensor in linear.tensors)
        held, rest = divmod(whole, self.size)
        assert rest == 0, f"{whole} bytes over {self.size} ranks"
        return FfnBytes(held, whole - held)


def beside_split(error: PlanError) -> PlanError:
    """The error of a name that matches nothing, where linears of that name may have been split."""
    return PlanError(f"{error}; the linears of dense MLPs are split ({FFN_KEY}), and not sharded")
