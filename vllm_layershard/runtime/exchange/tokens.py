"""TokenExchange: before a whole linear its ranks swap columns for rows, behind it they gather rows.

Note [An exchange]
T ranks hold the same N rows, and each of them 1/T of the columns: those of its heads. The rows are
padded to T c, c = ceil(N / T). Rank r gets rows r c to (r + 1) c of all columns, in the order of
the ranks, which is that of the whole weight's input. So it runs the whole linear on c rows, and no
partial sums are left to add. Then every rank gets all rows, and the padding is cut off.

Each forward pads what it is given: nothing is remembered from one to the next. Rows that are added
are zeros, so that a quantiser that looks at a whole tensor sees no others' numbers.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from vllm_layershard.errors import HostError
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.stats import Counters
from vllm_layershard.runtime.tensors import flat

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""torch 2.13 has renamed it."""


class TokenExchange:
    """Of one linear: `group` are its tensor-parallel ranks, `columns` its whole weight's input.

    Counts in `counters` what it does.
    """

    def __init__(self, group: RankGroup, linear: str, columns: int, counters: Counters) -> None:
        self._group = group
        self._linear = linear
        self._columns = columns
        self._counters = counters

    def exchange(self, x: torch.Tensor) -> torch.Tensor:
        """From this rank's columns of all rows to its rows of all columns: [N, C / T] -> [c, C].

        Collective: every rank of the group gives as many rows. The result is memory of its own.

        Raises:
            HostError: the columns of all ranks together are not the whole linear's.
            TransportError: a rank of the group is gone.
        """
        size, (rows, columns) = self._group.size, x.shape
        if columns * size != self._columns:
            raise HostError(
                f"{self._linear}: each of {size} tensor-parallel ranks brings {columns} columns, "
                f"but the whole linear takes {self._columns}: its input is not split evenly over "
                "them; leave it out of token_exchange"
            )
        share = share_of(rows, size)
        sent = padded(x, share * size)
        received = torch.empty_like(sent)
        try:
            dist.all_to_all_single(flat(received), flat(sent), group=self._group.tokens)
        except RuntimeError as error:
            raise self._group.lost(
                f"the tokens of {self._linear} could not be exchanged", error
            ) from error
        self._counters.exchanges += 1
        self._counters.exchanged_rows += share
        by_sender = received.view(size, share, columns)
        return by_sender.transpose(0, 1).reshape(share, size * columns)

    def gather(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """From this rank's rows to all `rows` of them, without the padding: [c, H] -> [N, H].

        Collective. The result is memory of its own.

        Raises:
            TransportError: a rank of the group is gone.
        """
        share, width = x.shape
        gathered = x.new_empty((share * self._group.size, width))
        try:
            _all_gather(flat(gathered), flat(x.contiguous()), group=self._group.tokens)
        except RuntimeError as error:
            raise self._group.lost(
                f"the results of {self._linear} could not be gathered", error
            ) from error
        return gathered[:rows]


def share_of(rows: int, size: int) -> int:
    """How many of the rows each of `size` ranks gets, padding included."""
    return (rows + size - 1) // size


def padded(x: torch.Tensor, rows: int) -> torch.Tensor:
    """`x`, contiguous, with rows of zeros behind it; `x` itself where it is so already."""
    if x.shape[0] == rows:
        return x.contiguous()
    filled = x.new_zeros((rows, x.shape[1]))
    filled[: x.shape[0]] = x
    return filled
