"""Generated faults where some forwards move weights and others tokens, over real gloo ranks.

One rank is late, dies, or stalls for longer than the group waits: before, within or after a linear.
Layers are dealt out, or every rank has some rows of each. Each run ends right or with a named
error, and none hangs.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pytest
import torch
from torch.nn.functional import linear

from gloo.moving import bind_moving, product, sharding_by, tokens_of
from gloo.stack import WIDTH, Stack
from gloo.struck import LONG_S, Meet, Run, outcome
from vllm_layershard.config import Placement
from vllm_layershard.errors import LayerShardError
from vllm_layershard.plan.move import MoveRule
from vllm_layershard.runtime.moves.linear import Compute
from vllm_layershard.runtime.moves.ops import order_on

SHORT_S = 2.0
"""Of a group in which a rank stalls."""
FORWARDS = 4
WEIGHTS_FROM = 8
LAYERS = 3

Fault = Literal["late", "death", "stall"]
Moment = Literal["before", "within", "after"]
MATRIX = pytest.mark.matrix(part="faults")


@dataclass(frozen=True, slots=True)
class Schedule:
    """What happens; all is drawn from `seed`. `counts` are each rank's tokens, by forward."""

    seed: int
    fault: Fault
    moment: Moment
    size: int
    prefetch_step: int
    rank: int
    forward: int
    layer: int
    counts: tuple[tuple[int, ...], ...]
    placement: Placement

    @classmethod
    def drawn(cls, seed: int) -> Schedule:
        draw = random.Random(seed)
        size, layer = draw.randint(2, 3), draw.randrange(LAYERS)
        first = draw.randrange(2)
        counts = []
        for forward in range(FORWARDS):  # either way by turns, so that both are in each run
            low, most = (WEIGHTS_FROM, 20) if (forward + first) % 2 else (1, WEIGHTS_FROM - 1)
            counts.append(tuple(draw.randint(low, most) for _ in range(size)))
        moment = draw.choice(get_args(Moment))
        placement: Placement = draw.choice(("round_robin", "striped"))
        # of layers that are dealt out only the owner computes, where tokens move
        by_owner = moment == "within" and placement == "round_robin"
        return cls(
            seed=seed,
            fault=draw.choices(get_args(Fault), [4, 6, 1])[0],
            moment=moment,
            size=size,
            prefetch_step=draw.randrange(LAYERS),
            rank=layer % size if by_owner else draw.randrange(size),
            forward=draw.randrange(FORWARDS),
            layer=layer,
            counts=tuple(counts),
            placement=placement,
        )


@torch.inference_mode()
def forwards(rank: int, schedule: Schedule, meet: Meet) -> str:
    plain, stack = Stack(LAYERS, seed=7), Stack(LAYERS, seed=7)
    rule, now = MoveRule("auto", WEIGHTS_FROM), [0]
    options = {"prefetch_step": schedule.prefetch_step, "placement": schedule.placement}
    sharding = sharding_by(rule, **options)
    for layer_id, each in enumerate(stack.linears):
        sharding.add(each, layer_id=layer_id)
    series = sharding.finish(verify=True)["linear"]

    def reached(moment: str, layer: int) -> None:
        planned = (schedule.rank, schedule.moment, schedule.forward, schedule.layer)
        if (rank, moment, now[0], layer) == planned:
            strike(schedule)

    def struck(layer: int, compute: Compute) -> Compute:
        def within(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            reached("within", layer)
            return compute(x, bias)

        return within

    bind_moving(
        series, list(stack.linears), "linear", rule, lambda _: schedule.counts[now[0]], struck
    )
    meet("loaded")
    wrong = 0
    for forward, counts in enumerate(schedule.counts):
        now[0] = forward
        weights = rule.moves_weights(counts)
        for layer, module in enumerate(plain.linears):
            everyone = [tokens_of(r, n, WIDTH, forward).float() for r, n in enumerate(counts)]
            if weights:
                expected = linear(everyone[rank], module.weight, module.bias)
            else:
                expected = product(series, torch.cat(everyone), module).split(list(counts))[rank]
            reached("before", layer)
            torch.ops.layershard.reach(everyone[rank], f"layers.{layer}")
            made = torch.full_like(expected, float("nan"))
            key, order = f"layers.{layer}.linear", order_on(torch.device("cpu"))
            torch.ops.layershard.linear(everyone[rank], module.bias, made, order, key)
            reached("after", layer)
            wrong += not torch.equal(made, expected)
    ways = series.counters.activation_forwards
    return "right" if not wrong and ways == FORWARDS // 2 else f"WRONG {wrong}, {ways}"


def strike(schedule: Schedule) -> None:
    if schedule.fault == "late":
        time.sleep(random.Random(schedule.seed).random() / 10)
    elif schedule.fault == "stall":
        time.sleep(2 * SHORT_S)
    else:
        os._exit(1)


def run_of(schedule: Schedule) -> Run:
    return Run(
        schedule.size,
        SHORT_S if schedule.fault == "stall" else LONG_S,
        lambda rank: lambda meet: forwards(rank, schedule, meet),
        named=(LayerShardError,),
        together=schedule.fault == "late",
    )


def check(schedule: Schedule, came: list[str]) -> None:
    said = f"{schedule}: {came}"
    for rank, text in enumerate(came):
        if schedule.fault == "late":
            assert text == "right", said
        elif schedule.fault == "death" and rank == schedule.rank:
            assert text == "nothing", said
        else:
            assert text == "right" or is_lost(text, schedule), said


def is_lost(text: str, schedule: Schedule) -> bool:
    whose = "stored in stripes" if schedule.placement == "striped" else "owned by rank "
    named = f", {whose}" in text and " could not be moved: a rank of the group" in text
    return text.startswith("TransportError: rank ") and named


@pytest.mark.parametrize(
    "seeds", [range(20), pytest.param(range(20, 300), marks=[MATRIX, pytest.mark.timeout(3600)])]
)
def test_each_ends_right_or_with_a_named_error(seeds: range, tmp_path: Path) -> None:
    for seed in seeds:
        schedule = Schedule.drawn(seed)
        place = tmp_path / str(seed)
        place.mkdir()
        check(schedule, outcome(run_of(schedule), place))
