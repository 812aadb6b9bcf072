"""Rows of tokens that ranks gather and scatter; each may have another number of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from vllm_layershard.runtime.ranks.group import RankGroup

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
"""By the names that torch 2.13 has for them, or else by their former ones."""


def take_room(group: RankGroup, device: torch.device) -> None:
    """Have a process group that moves nothing but tokens take what it will keep. Collective.

    NCCL makes a communicator at its first collective, and the buffers of each pair of ranks at
    their first exchange. A group that moves weights, too, was used when they were loaded.
    """
    if group.apart is None:
        return
    given = torch.zeros(group.size, device=device)
    dist.all_to_all_single(torch.empty_like(given), given, group=group.apart)
    _all_gather(torch.empty_like(given), given[:1], group=group.apart)


def gather_rows(x: torch.Tensor, counts: Sequence[int], group: RankGroup) -> torch.Tensor:
    """Every rank's rows, in the order of the group: [counts[r], H] -> [sum(counts), H]. Collective.

    Ranks with fewer rows than the one that has most send zeros behind them, which are left out.
    """
    most, width = max(counts), x.shape[1]
    gathered = x.new_empty(group.size * most, width)
    _all_gather(gathered, _padded(x, most), group=group.tokens)
    if min(counts) == most:
        return gathered
    blocks = gathered.view(group.size, most, width)
    return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])


def scatter_sums(partial: torch.Tensor, counts: Sequence[int], group: RankGroup) -> torch.Tensor:
    """This rank's rows of the sum over the group: [sum(counts), H] -> [counts[r], H]. Collective.

    With two ranks a sum does not depend on their order.
    """
    most, width = max(counts), partial.shape[1]
    if min(counts) == most:
        blocks = partial.contiguous()
    else:
        blocks = torch.cat([_padded(rows, most) for rows in partial.split(list(counts))])
    own = partial.new_empty(most, width)
    _reduce_scatter(own, blocks, group=group.tokens)
    return own[: counts[group.group_rank]]


def _padded(rows: torch.Tensor, most: int) -> torch.Tensor:
    """The rows with zeros behind them, contiguous."""
    if rows.shape[0] == most:
        return rows.contiguous()
    padded = rows.new_zeros(most, rows.shape[1])
    padded[: rows.shape[0]] = rows
    return padded
