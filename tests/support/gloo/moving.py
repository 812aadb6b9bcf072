"""Generated sequences of forwards over real ranks, each of which moves weights or tokens.

Every rank draws the same sequence from its seed. What a linear makes is compared, bit by bit, with
its product in one process: of this rank's rows where weights move, of all ranks' rows together
where tokens do. Where each rank has some rows of the weight, with the products of these, side by
side.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import linear

from vllm_layershard.config import Move
from vllm_layershard.manual import Lane, LayerSharding
from vllm_layershard.plan.move import MoveRule
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.moves.linear import Compute, MovedLinear
from vllm_layershard.runtime.moves.ops import bind_linear, order_on
from vllm_layershard.runtime.moves.series import MovingSeries
from vllm_layershard.runtime.moves.striped_linear import StripedLinear
from vllm_layershard.runtime.series import ShardedSeries

MOST_TOKENS = 300
SHAPES = {"o_proj": (24, 16), "q_b_proj": (16, 40)}
"""Input and output of each series' linears."""


@dataclass(frozen=True)
class Forward:
    """Tokens of each rank; `skipped` linears are run on no rank, as some dummy batches do."""

    counts: tuple[int, ...]
    skipped: frozenset[tuple[str, int]] = frozenset()


@dataclass(frozen=True)
class Sequence:
    """What one model is asked for, and the forwards that it runs."""

    options: dict[str, Any]
    layers: int
    bias: bool
    rule: MoveRule
    forwards: tuple[Forward, ...]


def drawn(seed: int, ranks: int) -> Sequence:
    """A sequence: any step, placement, transport and rule, before and after which others come."""
    draw = random.Random(seed)
    step = draw.choice((0, 1, 1, 2))
    layers = draw.randint(step + 1, step + 4)
    move: Move = draw.choice(("auto", "auto", "auto", "activations", "weights"))
    loads = [_counts(draw, ranks) for _ in range(draw.randint(2, 6))]
    about = draw.choice(loads)
    start = max(1, max(about) + draw.choice((-1, 0, 1))) if move == "auto" else None
    placement = draw.choice(("round_robin",) * 4 + ("striped",) * 4 + ("replicated",))
    transports = ("pull",) if placement == "striped" else ("broadcast", "pull")
    return Sequence(
        options={
            "prefetch_step": step,
            "placement": placement,
            "transport": draw.choice(transports),
        },
        layers=layers,
        bias=draw.random() < 0.5,
        rule=MoveRule(move, start),
        forwards=tuple(Forward(load, _skipped(draw, layers)) for load in loads),
    )


def _counts(draw: random.Random, ranks: int) -> tuple[int, ...]:
    kind = draw.random()
    if kind < 0.1:
        return (0,) * ranks
    most = draw.choice((1, 3, 32, MOST_TOKENS))
    if kind < 0.3:
        return (draw.randint(1, most),) * ranks
    return tuple(draw.choice((0, 1, draw.randint(0, most))) for _ in range(ranks))


def _skipped(draw: random.Random, layers: int) -> frozenset[tuple[str, int]]:
    if draw.random() < 0.8:
        return frozenset()
    return frozenset((name, draw.randrange(layers - 1)) for name in SHAPES if layers > 1)


@dataclass
class Seen:
    """What a rank saw of a sequence: `wrong` in words, and how many forwards moved what."""

    wrong: list[str] = field(default_factory=list)
    weight_forwards: int = 0
    activation_forwards: int = 0
    forwards_to_rows: int = 0


def play(rank: int, first: int, count: int) -> Seen:
    """Run the sequences of these seeds one after another, on one lane of process groups."""
    seen = Seen()
    lanes: dict[int, Lane] = {}

    def lane(group: Any) -> Lane:
        return lanes.setdefault(0, Lane(group))

    with torch.inference_mode():
        for seed in range(first, first + count):
            _play_one(rank, seed, drawn(seed, dist.get_world_size()), lane, seen)
    return seen


def _play_one(
    rank: int, seed: int, sequence: Sequence, lane: Callable[[Any], Lane], seen: Seen
) -> None:
    sharding = sharding_by(sequence.rule, lane=lane, **sequence.options)
    plain = {name: _linears(sequence, name, seed) for name in SHAPES}
    shared = {name: _linears(sequence, name, seed) for name in SHAPES}
    for name, linears in shared.items():
        for layer_id, each in enumerate(linears):
            sharding.add(each, layer_id=layer_id, series=name)
    sharding.finish(verify=True)
    now: list[tuple[int, ...]] = [()]
    for name, linears in shared.items():
        bind_moving(sharding.series[name], list(linears), name, sequence.rule, lambda _: now[0])
    for number, forward in enumerate(sequence.forwards):
        now[0] = forward.counts
        for fault in _faults(rank, seed + number, sequence, forward, sharding, plain, shared):
            seen.wrong.append(f"seed {seed}, forward {number}, {forward}: {fault}")
        if sequence.options["placement"] == "replicated":
            continue
        if sequence.rule.moves_weights(forward.counts):
            seen.weight_forwards += 1
        else:
            seen.activation_forwards += 1
            seen.forwards_to_rows += sequence.options["placement"] == "striped"
    ops.unbind([f"layers.{layer}" for layer in range(sequence.layers)])


def _linears(sequence: Sequence, name: str, seed: int) -> nn.ModuleList:
    torch.manual_seed(seed)
    of, to = SHAPES[name]
    return nn.ModuleList(
        nn.Linear(of, to, bias=sequence.bias, dtype=torch.bfloat16) for _ in range(sequence.layers)
    )


def sharding_by(rule: MoveRule, **options: Any) -> LayerSharding:
    """A sharding whose stripes are of rows where tokens may move; the manual API asks for none."""
    sharding = LayerSharding(**options)
    sharding.config = replace(sharding.config, move=rule.move, move_weights_from=rule.weights_from)
    return sharding


def bind_moving(
    series: ShardedSeries,
    linears: list[nn.Module],
    name: str,
    rule: MoveRule,
    agreed: Callable[[int], Any],
    around: Callable[[int, Compute], Compute] = lambda position, compute: compute,
) -> MovingSeries:
    """Bind both ops to the series: `layers.{i}` are its boundaries, `layers.{i}.{name}` linears.

    What a position computes, of the whole weight or of some rows, is what `around` makes of it.
    """
    moving = MovingSeries(series, rule, agreed)
    for position, module in enumerate(linears):
        path = f"layers.{position}.{name}"
        ops.bind(f"layers.{position}", path, ops.Place(series, position, moving))
        whole = around(position, computing(module))
        if series.plan.series.rows is None:
            bind_linear(MovedLinear(moving, position, path, whole))
        else:
            rows = around(position, computing_rows(series, position))
            bind_linear(StripedLinear(moving, position, path, whole, rows))
    return moving


def computing(module: Any) -> Compute:
    """What the module makes, with the weight that it has by then."""
    return lambda x, bias: linear(x, module.weight, bias)


def computing_rows(series: ShardedSeries, position: int) -> Compute:
    """What the rows make that this rank has."""
    first, end = series.plan.rows(series.group.group_rank)

    def compute(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        weight = series.rows(position)
        assert weight is not None
        assert weight.shape[0] == end - first
        return linear(x, weight, None if bias is None else bias[first:end])

    return compute


def product(series: ShardedSeries, rows: torch.Tensor, module: Any) -> torch.Tensor:
    """In one process: what all rows of tokens make where tokens move."""
    of = series.plan
    if of.series.rows is None:
        return linear(rows, module.weight, module.bias)
    made = []
    for first, end in map(of.rows, range(series.group.size)):
        bias = None if module.bias is None else module.bias[first:end]
        made.append(linear(rows, module.weight[first:end], bias))
    return torch.cat(made, dim=1)


def tokens_of(rank: int, count: int, columns: int, seed: int) -> torch.Tensor:
    """A rank's rows: every rank can draw those of all."""
    draw = torch.Generator().manual_seed(1000 * seed + rank)
    return torch.randn(count, columns, generator=draw).bfloat16()


def _faults(
    rank: int,
    seed: int,
    sequence: Sequence,
    forward: Forward,
    sharding: LayerSharding,
    plain: dict[str, nn.ModuleList],
    shared: dict[str, nn.ModuleList],
) -> list[str]:
    every_series = sharding.series.values()
    weights = sequence.options["placement"] == "replicated" or sequence.rule.moves_weights(
        forward.counts
    )
    before = [(s.counters.weight_bytes, s.counters.launches) for s in every_series]
    found = []
    if not any(series.in_flight for series in every_series):
        poison(every_series)
    for layer in range(sequence.layers):
        hidden = torch.zeros(forward.counts[rank], 1)
        torch.ops.layershard.reach(hidden, f"layers.{layer}")
        if layer == 0 and not weights:
            if any(series.in_flight for series in every_series):
                found.append("weights are in flight where tokens move")
            poison(every_series)
        for name, (of, to) in SHAPES.items():
            if (name, layer) in forward.skipped:
                continue
            module, key = plain[name][layer], f"layers.{layer}.{name}"
            everyone = [tokens_of(r, n, of, seed + layer) for r, n in enumerate(forward.counts)]
            whole = linear(everyone[rank], module.weight, module.bias)
            expected = whole
            if not weights:
                together = product(sharding.series[name], torch.cat(everyone), module)
                expected = together.split(list(forward.counts))[rank]
            bias, order = shared[name][layer].bias, order_on(torch.device("cpu"))
            made = everyone[rank].new_full((len(everyone[rank]), to), float("nan"))
            torch.ops.layershard.linear(everyone[rank], bias, made, order, key)
            if not torch.equal(made, expected):
                found.append(f"{key} makes something else")
            if not torch.allclose(made.float(), whole.float(), atol=1 / 64, rtol=1 / 64):
                found.append(f"{key} is not near what it makes without sharding")
    if not weights:
        after = [(s.counters.weight_bytes, s.counters.launches) for s in every_series]
        if after != before:
            found.append(f"weights moved: {before} -> {after}")
        if not all(is_poisoned(series) for series in every_series):
            found.append("a slot was written to")
    return found


def poison(every_series: Iterable[ShardedSeries]) -> None:
    for series in every_series:
        series.slots.poison()


def is_poisoned(series: ShardedSeries) -> bool:
    """Whether every byte of every slot is as `poison` has left it."""
    tensors = [tensor for slot in series.slots.tensors for tensor in slot]
    return all(bool((t.flatten().view(torch.uint8) == 0xFF).all()) for t in tensors)
