"""MovedLinear: one linear whose owner computes it for all ranks, where tokens move.

Note [The owner computes]
Each rank sends its rows to the owner, which joins them in the order of the group, multiplies them
by the weight that it stores, and sends every rank its rows of the result. Both ways are all-to-alls
in which only one rank receives, or sends: their sizes are the token counts, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from vllm_layershard.errors import HostError, MismatchError
from vllm_layershard.runtime.moves.series import MovingSeries
from vllm_layershard.runtime.ranks.group import RankGroup

Compute = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""[m, D_in] and a bias or None -> [m, D_out], with the tensors that the linear's module has."""


class MovedLinear:
    """The linear of one position, named `name`.

    `awaited_by` names what waits for its weight ahead of it, if it does not wait itself.
    """

    def __init__(self, moving: MovingSeries, position: int, name: str, compute: Compute) -> None:
        group = moving.series.group
        assert isinstance(group, RankGroup), "plan: tokens move among ranks in lockstep only"
        self.name = name
        self.awaited_by: str | None = None
        self._moving = moving
        self._position = position
        self._compute = compute
        self._group = group

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        """Write to `out` what the linear makes of this rank's rows: [n, D_in] -> [n, D_out].

        Collective over the group, whichever way the forward goes.

        Raises:
            MismatchError: this rank has another number of rows than the ranks have agreed on.
            HostError: the linear's results are not of the kind that the ranks expect; or another
                module was to wait for its weight, and has not.
            TransportError: a rank of the group died or hangs.
        """
        moving = self._moving
        if moving.moves_weights:
            self._wait()
            out.copy_(self._compute(x, bias))
            if moving.rows_to_try:
                self._try(x, bias)
            return
        self._require_agreed(x)
        if max(moving.counts) > 0:
            self._by_tokens(x, bias, out)
        moving.leave(self._position)

    def _wait(self) -> None:
        if self.awaited_by is None:
            self._moving.series.wait(self._position)
        elif not self._moving.series.has_arrived(self._position):
            raise HostError(
                f"{self.name} runs where its weight was not waited for: {self.awaited_by} waits "
                "for it at its entry, and was not entered before; leave it out"
            )

    def _try(self, x: torch.Tensor, bias: torch.Tensor | None) -> None:
        """See [Room for what is gathered]: an owner gathers, nobody else does."""
        moving = self._moving
        if moving.series.plan.owner[self._position] == self._group.group_rank:
            joined = x.new_zeros(moving.rows_to_try, x.shape[1])
            made = self._compute(joined, bias)
            made.new_empty(made.shape[0] // self._group.size, made.shape[1])
            moving.rows_to_try = 0

    def _require_agreed(self, x: torch.Tensor) -> None:
        counts, mine = self._moving.counts, self._group.group_rank
        if len(counts) != self._group.size or x.shape[0] != counts[mine]:
            raise MismatchError(
                f"{self.name}: rank {self._group.ranks[mine]} has {x.shape[0]} tokens, and the "
                f"ranks {list(self._group.ranks)} have agreed on {list(counts)}; please report "
                "this with the server's arguments"
            )

    def _by_tokens(self, x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        """Write to `out` what the linear makes of this rank's rows, some rank having a token."""
        counts, mine = self._moving.counts, self._group.group_rank
        owner = self._moving.series.plan.owner[self._position]
        whose = f"owned by rank {self._group.ranks[owner]}"
        try:
            joined = rows_to(owner, x, counts, self._group)
        except RuntimeError as error:
            raise self._lost("tokens", whose, error) from error
        made = out[:0]
        if owner == mine:
            made = self._compute(joined, bias)
            self._check_made(made, (joined.shape[0], out.shape[1]), out.dtype)
        try:
            own = rows_from(owner, made, counts, self._group)
        except RuntimeError as error:
            raise self._lost("results", whose, error) from error
        out.copy_(own)
        came = joined.numel() - x.numel() if owner == mine else own.numel()
        self._moving.series.counters.activation_bytes += came * x.element_size()

    def _check_made(
        self, made: torch.Tensor, expected: tuple[int, int], dtype: torch.dtype
    ) -> None:
        if made.shape != expected or made.dtype != dtype:
            raise HostError(
                f"{self.name}: makes {list(made.shape)} of {made.dtype} where the other ranks "
                f"expect {list(expected)} of {dtype}; use move 'weights' for it"
            )

    def _lost(self, what: str, whose: str, error: RuntimeError) -> Exception:
        return self._group.lost(f"{self.name}, {whose}: its {what} could not be moved", error)


def rows_to(owner: int, x: torch.Tensor, counts: Sequence[int], group: RankGroup) -> torch.Tensor:
    """On the owner every rank's rows, in the order of the group; elsewhere none. Collective.

    [counts[r], D] on each rank r -> [sum(counts), D] on group rank `owner`.
    """
    mine, here = group.group_rank, owner == group.group_rank
    joined = x.new_empty(sum(counts) if here else 0, x.shape[1])
    sent = [counts[mine] if rank == owner else 0 for rank in range(group.size)]
    received = list(counts) if here else [0] * group.size
    dist.all_to_all_single(joined, x.contiguous(), received, sent, group=group.tokens)
    return joined


def rows_from(
    owner: int, made: torch.Tensor, counts: Sequence[int], group: RankGroup
) -> torch.Tensor:
    """This rank's rows of what the owner has: the way back of `rows_to`. Collective.

    [sum(counts), D] on group rank `owner`, [0, D] elsewhere -> [counts[r], D] on each rank r.
    """
    mine, here = group.group_rank, owner == group.group_rank
    own = made.new_empty(counts[mine], made.shape[1])
    sent = list(counts) if here else [0] * group.size
    received = [counts[mine] if rank == owner else 0 for rank in range(group.size)]
    dist.all_to_all_single(own, made.contiguous(), received, sent, group=group.tokens)
    return own
