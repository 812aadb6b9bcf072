"""StripedLinear: one linear of which every rank computes its rows for all ranks, where tokens move.

Note [Each its rows]
Every rank gathers the tokens of the whole group, multiplies them by the rows of the weight that it
stores, and sends each rank the results of that rank's tokens. A result is the dot product of a
token with a whole row, as it is in the whole linear: nothing is added up over ranks. The way back
is one all-to-all, whose sizes are a rank's tokens times a rank's rows, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from vllm_layershard.runtime.moves.linear import Compute, MovedLinear
from vllm_layershard.runtime.moves.series import MovingSeries
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.ranks.rows import gather_rows


class StripedLinear(MovedLinear):
    """The linear of one position of a series that is cut at rows.

    `compute_rows` is [m, D_in] and the whole bias or None -> [m, n], with the n rows of this rank.
    A rank of no rows does not call it.
    """

    def __init__(
        self,
        moving: MovingSeries,
        position: int,
        name: str,
        compute: Compute,
        compute_rows: Compute,
    ) -> None:
        super().__init__(moving, position, name, compute)
        plan = moving.series.plan
        bounds = [plan.rows(rank) for rank in range(self._group.size)]
        self._widths = [end - first for first, end in bounds]
        self._compute_rows = compute_rows

    def _try(self, x: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Each rank gathers, and where ranks have other numbers of tokens it does so twice."""
        rows, columns = self._moving.rows_to_try, x.shape[1]
        x.new_empty(2 * rows, columns)
        if self._widths[self._group.group_rank]:
            gathered = x.new_zeros(rows, columns)
            made = self._compute_rows(gathered, bias)
            made.new_empty(rows // self._group.size, sum(self._widths))
        self._moving.rows_to_try = 0

    def _by_tokens(self, x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        counts, widths, mine = self._moving.counts, self._widths, self._group.group_rank
        try:
            gathered = gather_rows(x, counts, self._group)
        except RuntimeError as error:
            raise self._lost("tokens", "stored in stripes", error) from error
        made = gathered.new_empty((gathered.shape[0], 0), dtype=out.dtype)
        if widths[mine]:
            made = self._compute_rows(gathered, bias)
        self._check_made(made, (gathered.shape[0], widths[mine]), out.dtype)
        try:
            parts = results_of(made, counts, widths, self._group)
        except RuntimeError as error:
            raise self._lost("results", "stored in stripes", error) from error
        torch.cat(parts, dim=1, out=out)
        came = (len(counts) - 1) * max(counts) * x.shape[1] * x.element_size()
        came += counts[mine] * (sum(widths) - widths[mine]) * out.element_size()
        self._moving.series.counters.activation_bytes += came


def results_of(
    made: torch.Tensor, counts: Sequence[int], widths: Sequence[int], group: RankGroup
) -> list[torch.Tensor]:
    """Every rank's results of this rank's tokens, in the order of the group. Collective.

    [sum(counts), widths[r]] on each rank r -> there, of each rank s, [counts[r], widths[s]].
    """
    mine = group.group_rank
    received = [counts[mine] * width for width in widths]
    sent = [count * widths[mine] for count in counts]
    own = made.new_empty(sum(received))
    dist.all_to_all_single(own, made.reshape(-1), received, sent, group=group.tokens)
    pairs = zip(own.split(received), widths, strict=True)
    return [part.view(counts[mine], width) for part, width in pairs]
