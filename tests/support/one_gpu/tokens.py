"""Layers of one of two ranks between which tokens move, with the weights of linears beside them.

Of three kinds: a token exchange around a whole linear, an MLP in parts behind a linear, and a
linear of which a forward moves either the weight or the tokens. Each knows what it makes of all
ranks' tokens in one process, and what it makes beside a rank that mirrors it (mirror.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch.nn.functional import linear

from one_gpu.stack import WIDTH, Begin, ShardedStack, delay
from vllm_layershard.plan.move import MoveRule
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.exchange.ops import bind_exchange
from vllm_layershard.runtime.exchange.tokens import TokenExchange, padded, share_of
from vllm_layershard.runtime.moves.linear import MovedLinear
from vllm_layershard.runtime.moves.ops import bind_linear, order_on
from vllm_layershard.runtime.moves.series import MovingSeries
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.split_mlp import SplitMlp, bind_mlps

RANKS = 2
INNER = 64
"""Columns of an MLP that each rank computes."""
MANY = 4
"""So many tokens on a rank, and weights move to them."""


class Stage(NamedTuple):
    """A part of a forward. Where it is `eager`, graphs end: vLLM's PIECEWISE mode splits there."""

    run: Callable[[Any], Any]
    eager: bool = False


class TokenStack(ShardedStack):
    """Its collectives go over `group.tokens`. `counts` are the ranks' tokens in the forward.

    `name` is a prefix of its keys. Where ranks are `alike` they have the same tokens.
    """

    alike: ClassVar[bool] = False
    loads: ClassVar[tuple[tuple[int, ...], ...]] = ((3, 1), (4, 2), (2, 0))
    """Tokens of each rank in one forward after another. Rank 0 has the most: see mirror.py."""

    def __init__(
        self, name: str, group: RankGroup, device: Device, shape: tuple[int, int], begin: Begin
    ) -> None:
        """`shape` is the number of layers, and the prefetch step."""
        super().__init__(device, *shape, begin)
        self.name = name
        self.group = group
        self.counts: tuple[int, ...] = ()
        self.mlps: list[SplitMlp] = []
        ops.unbind([f"{key}.{i}" for key in ("gpu", name) for i in range(len(self.whole))])
        self._bind_tokens()

    @abstractmethod
    def _bind_tokens(self) -> None: ...

    @abstractmethod
    def layer(self, i: int) -> tuple[Stage, ...]:
        """From this rank's activation, [n, WIDTH], to the next layer's."""

    @abstractmethod
    def after_layer(self, i: int, everyone: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """In one process: the activations of all ranks behind the layer, from those before it."""

    @abstractmethod
    def beside_mirror(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """The same of this rank, group rank 0, where the other one mirrors it."""

    def stages(self) -> tuple[Stage, ...]:
        return tuple(stage for i in range(len(self.whole)) for stage in self.layer(i))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages():
            x = stage.run(x)
        return x

    def expected(self, everyone: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What a forward says on each rank."""
        for i in range(len(self.whole)):
            everyone = self.after_layer(i, everyone)
        return [*everyone]

    def expected_beside_mirror(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(len(self.whole)):
            x = self.beside_mirror(i, x)
        return x

    def tokens(self, counts: Sequence[int], seed: int) -> list[torch.Tensor]:
        """Of each rank."""
        draw = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(count, WIDTH, generator=draw) for count in counts]
        if self.alike:
            drawn = [drawn[0].clone() for _ in counts]
        return [x.to(self.whole[0].device) for x in drawn]

    def _reach(self, i: int, x: torch.Tensor) -> torch.Tensor:
        torch.ops.layershard.reach(x, f"{self.name}.{i}")
        return x

    def _wait(self, i: int, value: Any) -> Any:
        torch.ops.layershard.wait(self.whole[i], f"{self.name}.{i}.linear")
        return value

    def _linear(self, i: int, x: torch.Tensor) -> torch.Tensor:
        delay(self.compute_delay_cycles)
        return self.linears[i](x)


class Exchanging(TokenStack):
    """Tensor-parallel ranks exchange tokens before each linear, and gather what it makes."""

    alike = True
    loads = ((5, 5), (4, 4), (1, 1))

    def _bind_tokens(self) -> None:
        for i in range(len(self.whole)):
            key, counters = f"{self.name}.{i}.linear", self.series.counters
            ops.bind(f"{self.name}.{i}", key, ops.Place(self.series, i))
            bind_exchange(key, TokenExchange(self.group, key, WIDTH, counters))

    def layer(self, i: int) -> tuple[Stage, ...]:
        key, mine = f"{self.name}.{i}.linear", self.group.group_rank

        def exchange(x: torch.Tensor) -> Any:
            return x, torch.ops.layershard.exchange(columns_of(x, mine), RANKS, key)

        def gather(value: Any) -> torch.Tensor:
            x, rows = value
            made = self._linear(i, rows)
            return torch.tanh(x + torch.ops.layershard.gather(made, x.shape[0], key))

        reach, wait = (Stage(partial(do, i), eager=True) for do in (self._reach, self._wait))
        return reach, Stage(exchange), wait, Stage(gather)

    def after_layer(self, i: int, everyone: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        x = everyone[0]
        share = share_of(len(x), RANKS)
        chunks = padded(x, share * RANKS).split(share)
        made = torch.cat([linear(chunk, self.whole[i]) for chunk in chunks])
        return [torch.tanh(x + made[: len(x)])] * RANKS

    def beside_mirror(self, i: int, x: torch.Tensor) -> torch.Tensor:
        share = share_of(len(x), RANKS)
        own = padded(columns_of(x, 0), share * RANKS)[:share]
        made = linear(torch.cat([own] * RANKS, dim=1), self.whole[i])
        return torch.tanh(x + torch.cat([made] * RANKS)[: len(x)])


class Splitting(TokenStack):
    """Behind each linear an MLP, of which every rank computes a part for all tokens."""

    def _bind_tokens(self) -> None:
        draw, place = torch.Generator().manual_seed(11), self.whole[0].device
        self.parts = [
            [
                tuple(torch.randn(INNER, WIDTH, generator=draw).to(place) / 16 for _ in range(2))
                for _ in range(RANKS)
            ]
            for _ in self.whole
        ]
        """By layer and part, the weights of its columns up, and of them down."""
        for i in range(len(self.whole)):
            key = f"{self.name}.{i}"
            ops.bind(key, f"{key}.linear", ops.Place(self.series, i))
            compute = partial(self._part, i, self.group.group_rank)
            self.mlps.append(SplitMlp(f"{key}.mlp", self.group, compute, lambda: self.counts))
        bind_mlps(self.mlps)

    def _part(self, i: int, part: int, x: torch.Tensor) -> torch.Tensor:
        up, down = self.parts[i][part]
        return torch.tanh(linear(x, up)) @ down

    def layer(self, i: int) -> tuple[Stage, ...]:
        def compute(x: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(self._linear(i, x))
            order = order_on(x.device)
            return torch.tanh(x + torch.ops.layershard.ffn(x, order, f"{self.name}.{i}.mlp"))

        reach, wait = (Stage(partial(do, i), eager=True) for do in (self._reach, self._wait))
        return reach, wait, Stage(compute)

    def after_layer(self, i: int, everyone: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        everyone = [torch.tanh(linear(x, self.whole[i])) for x in everyone]
        joined = torch.cat([*everyone])
        made = self._part(i, 0, joined) + self._part(i, 1, joined)
        each = made.split([len(x) for x in everyone])
        return [torch.tanh(x + y) for x, y in zip(everyone, each, strict=True)]

    def beside_mirror(self, i: int, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(linear(x, self.whole[i]))
        made = self._part(i, 0, torch.cat([x, x[: self.counts[1]]]))
        return torch.tanh(x + 2 * made[: len(x)])


class Moving(TokenStack):
    """With few tokens on both ranks they move to a linear's owner, else the weight to them."""

    def _bind_tokens(self) -> None:
        rule = MoveRule("auto", MANY)
        self.moving = MovingSeries(self.series, rule, lambda rows: self.counts)
        for i in range(len(self.whole)):
            key = f"{self.name}.{i}.linear"
            ops.bind(f"{self.name}.{i}", key, ops.Place(self.series, i, self.moving))
            bind_linear(MovedLinear(self.moving, i, key, partial(self._compute, i)))

    def _compute(self, i: int, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._linear(i, x)

    def layer(self, i: int) -> tuple[Stage, ...]:
        def make_room(x: torch.Tensor) -> Any:
            return x, torch.full_like(x, torch.nan)

        def move(value: Any) -> Any:
            x, out = value
            key = f"{self.name}.{i}.linear"
            torch.ops.layershard.linear(x, None, out, order_on(x.device), key)
            return value

        def go_on(value: Any) -> torch.Tensor:
            x, made = value
            return torch.tanh(x + made)

        reach = Stage(partial(self._reach, i), eager=True)
        return reach, Stage(make_room), Stage(move, eager=True), Stage(go_on)

    def after_layer(self, i: int, everyone: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        counts = [len(x) for x in everyone]
        if max(counts) < MANY:
            made = [*linear(torch.cat([*everyone]), self.whole[i]).split(counts)]
        else:
            made = [linear(x, self.whole[i]) for x in everyone]
        return [torch.tanh(x + y) for x, y in zip(everyone, made, strict=True)]

    def beside_mirror(self, i: int, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([x, x[: self.counts[1]]])
        if max(self.counts) >= MANY:
            made = linear(x, self.whole[i])
        elif self.series.owns(i):
            made = linear(joined, self.whole[i])[: len(x)]
        else:
            made = torch.ones_like(x)
        return torch.tanh(x + made)


KINDS = (Exchanging, Splitting, Moving)


def columns_of(x: torch.Tensor, rank: int) -> torch.Tensor:
    """As the rank's heads compute them."""
    return x.chunk(RANKS, dim=1)[rank]


class TokenPieces:
    """A forward in pieces, each a graph, with what is eager between them: see Stage.

    `capture` makes a graph of some work, and says where its replays leave the result.
    """

    def __init__(
        self, stack: TokenStack, x: torch.Tensor, capture: Callable[[Callable[[], Any]], Any]
    ) -> None:
        self._again: list[Callable[[], Any]] = []
        self._kept: list[Any] = []
        """What pieces read: its memory must not be given to a later piece."""
        value: Any = x
        for stage in stack.stages():
            self._kept.append(value)
            run = partial(stage.run, value)
            if stage.eager:
                value = run()
                self._again.append(run)
            else:
                graph, value = capture(run)
                self._again.append(graph.replay)
        self._result = value

    def replay(self) -> torch.Tensor:
        """A forward over what the first input holds now."""
        for again in self._again:
            again()
        return self._result
