"""Mover: a stack of linears whose forwards move weights or tokens, with slept compute."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import linear

from vllm_layershard.config import Move, Placement
from vllm_layershard.manual import LayerSharding
from vllm_layershard.plan.move import MoveRule
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.moves.linear import Compute, MovedLinear
from vllm_layershard.runtime.moves.ops import bind_linear, order_on
from vllm_layershard.runtime.moves.series import MovingSeries
from vllm_layershard.runtime.moves.striped_linear import StripedLinear
from vllm_layershard.runtime.series import ShardedSeries

Seconds = Callable[[int], float]
"""Tokens -> what is slept for them."""

SecondsOfShare = Callable[[int, float], float]
"""Tokens and a share of the output's rows -> what is slept for their product."""


class Mover:
    """One way through the sharded linears of a stack; all ranks have as many tokens.

    `compute` is what is slept for a layer, `product` for its linear or a share of its rows.
    """

    def __init__(
        self,
        way: Move,
        series: ShardedSeries,
        linears: Sequence[nn.Linear],
        weights_from: int,
        compute: Seconds,
        product: SecondsOfShare,
    ) -> None:
        self._way = way
        self._series = series
        self._compute = compute
        self._product = product
        self._shape = linears[0].in_features, linears[0].out_features
        self._real = False
        ranks = dist.get_world_size()
        rule = MoveRule(way, weights_from if way == "auto" else None)
        moving = MovingSeries(series, rule, lambda rows: [rows] * ranks)
        self._layers = [f"{way}.layers.{i}" for i in range(len(linears))]
        for position, (layer, module) in enumerate(zip(self._layers, linears, strict=True)):
            path = f"{layer}.o_proj"
            ops.bind(layer, path, ops.Place(series, position, moving))
            whole = self._computing(module)
            if series.plan.series.rows is None:
                bind_linear(MovedLinear(moving, position, path, whole))
            else:
                of_rows = self._computing_rows(position)
                bind_linear(StripedLinear(moving, position, path, whole, of_rows))

    @staticmethod
    def of_ways(
        ways: Sequence[Move],
        layers: int,
        inner: int,
        width: int,
        weights_from: int,
        compute: Seconds,
        product: SecondsOfShare,
        placement: Placement,
        pulled: float,
    ) -> dict[str, Mover]:
        """Each way through the same linears; `pulled` is slept behind each pull. Collective."""
        linears = []
        for layer in range(layers):
            torch.manual_seed(layer)
            linears.append(nn.Linear(inner, width, bias=False, dtype=torch.bfloat16))
        transport = "pull" if placement == "striped" else "broadcast"
        sharding = LayerSharding(prefetch_step=1, transport=transport, placement=placement)
        # stripes are of rows where tokens may move; the manual API asks for none
        sharding.config = replace(sharding.config, move="auto", move_weights_from=weights_from)
        for layer, one in enumerate(linears):
            sharding.add(one, layer_id=layer, series="o_proj")
        sharding.finish()
        series = sharding.series["o_proj"]
        if placement == "striped":
            _pace(series, pulled)
        return {way: Mover(way, series, linears, weights_from, compute, product) for way in ways}

    @property
    def pulled_bytes(self) -> int:
        """Bytes that this rank has copied from the others' memory, which are on no link."""
        series = self._series
        return series.counters.weight_bytes if series.transport_name == "pull" else 0

    def forward(self, tokens: int) -> list[torch.Tensor]:
        """What each layer's linear makes, [tokens, width]; nothing is in flight afterwards."""
        inner, width = self._shape
        order = order_on(torch.device("cpu"))
        made = []
        for layer in self._layers:
            x = torch.ones(tokens, inner, dtype=torch.bfloat16)
            torch.ops.layershard.reach(x, layer)
            time.sleep(self._compute(tokens) / 2)
            out = torch.empty(tokens, width, dtype=torch.bfloat16)
            torch.ops.layershard.linear(x, None, out, order, f"{layer}.o_proj")
            time.sleep(self._compute(tokens) / 2)
            made.append(out)
        self._series.drain()
        return made

    def check(self, tokens: int) -> None:
        """One forward with real products: every rank has each layer's."""
        self._real = True
        inner, width = self._shape
        for layer, out in enumerate(self.forward(tokens)):
            torch.manual_seed(layer)
            plain = nn.Linear(inner, width, bias=False, dtype=torch.bfloat16)
            one = linear(torch.ones(1, inner, dtype=torch.bfloat16), plain.weight)
            torch.testing.assert_close(out, one.expand(tokens, width))
        self._real = False

    def _computing(self, module: nn.Linear) -> Compute:
        return lambda x, bias: self._made(x, module.weight, bias, self._shape[1])

    def _computing_rows(self, position: int) -> Compute:
        series = self._series
        first, end = series.plan.rows(series.group.group_rank)
        return lambda x, bias: self._made(x, series.rows(position), bias, end - first)

    def _made(
        self, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, rows: int
    ) -> torch.Tensor:
        """What these rows of the output are, or as many zeros after a sleep."""
        if self._real:
            assert weight is not None, "every rank has rows"
            return linear(x, weight, bias)
        time.sleep(self._product(x.shape[0], rows / self._shape[1]))
        return x.new_zeros(x.shape[0], rows)


def _pace(series: ShardedSeries, seconds: float) -> None:
    """Sleep on the side thread behind each pull: no kernel paces copies within memory."""
    device: Any = series.transport.device
    enqueue = device.enqueue

    def paced(work: Callable[[], None], end: Any = None) -> Any:
        def slow() -> None:
            work()
            time.sleep(seconds)

        return enqueue(slow, end)

    device.enqueue = paced
