"""A linear that is split by rows over real ranks, and the same linear whole behind an exchange."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from vllm_layershard.runtime.exchange.ops import bind_exchange
from vllm_layershard.runtime.exchange.tokens import TokenExchange, padded, share_of
from vllm_layershard.runtime.ranks.group import group_over
from vllm_layershard.runtime.stats import Counters

COLUMNS, WIDTH = 128, 48
PREFIX = "model.layers.0.o_proj"


class Whole(nn.Module):
    """The whole linear on every rank, between the two ops, as the host's quant method calls them.

    Every rank draws the same weight. `counters` count its exchanges.
    """

    def __init__(self, *, bias: bool, dtype: torch.dtype, prefix: str = PREFIX) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(COLUMNS, WIDTH, bias=bias, dtype=dtype)
        self.size = dist.get_world_size()
        self.counters = Counters()
        self.prefix = prefix
        bind_exchange(prefix, TokenExchange(group_over(None), prefix, COLUMNS, self.counters))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.ops.layershard.exchange(x, self.size, self.prefix)
        return torch.ops.layershard.gather(self.linear(rows), x.shape[0], self.prefix)

    def chunk_by_chunk(self, rows: torch.Tensor) -> torch.Tensor:
        """The whole product of each rank's rows in turn, computed here, without an exchange."""
        share = share_of(len(rows), self.size)
        chunks = padded(rows, share * self.size).split(share)
        return torch.cat([self.linear(chunk.contiguous()) for chunk in chunks])[: len(rows)]

    def split_by_rows(self, x: torch.Tensor) -> torch.Tensor:
        """As plain tensor parallelism does it: a partial product on each rank, and their sum."""
        rank = dist.get_rank()
        weight = self.linear.weight.chunk(self.size, dim=1)[rank]
        partial = nn.functional.linear(x, weight, self.linear.bias if rank == 0 else None)
        dist.all_reduce(partial)
        return partial


def rows_of(count: int, dtype: torch.dtype) -> torch.Tensor:
    """The same random rows on every rank: [count, COLUMNS]."""
    drawn = torch.randn(count, COLUMNS, generator=torch.Generator().manual_seed(count))
    return drawn.to(dtype)


def columns_of(rows: torch.Tensor) -> torch.Tensor:
    """This rank's columns of them, as its heads compute them."""
    return rows.chunk(dist.get_world_size(), dim=1)[dist.get_rank()].contiguous()
