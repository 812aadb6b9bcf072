"""Generated faults over real gloo ranks: each run ends right or with a named error, in time.

A schedule says what happens to one rank at one layer of one forward: it is late, dies, stalls for
longer than the group waits, was started with another plan, or its link corrupts a weight.
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

from gloo.stack import WIDTH, Stack, shard
from gloo.struck import LONG_S, Run, outcome
from vllm_layershard.errors import MismatchError, TransportError
from vllm_layershard.manual import reach_layer, wait_layer
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.transport import Ticket

SHORT_S = 2.0
"""Of a group in which a rank stalls: there it does not matter who else is given up."""
STALL_S = 2 * SHORT_S
FORWARDS = 3
WHILE_LOADING = -1

Fault = Literal["late", "death", "stall", "mismatch", "corrupt"]
MATRIX = pytest.mark.matrix(part="faults")


@dataclass(frozen=True, slots=True)
class Schedule:
    """What happens; all is drawn from `seed`."""

    seed: int
    fault: Fault
    size: int
    num_layers: int
    prefetch_step: int
    rank: int
    forward: int
    layer: int

    @classmethod
    def drawn(cls, seed: int) -> Schedule:
        draw = random.Random(seed)
        weights = {"late": 6, "death": 6, "stall": 1, "mismatch": 3, "corrupt": 4}
        size, num_layers = draw.randint(2, 3), draw.randint(2, 6)
        return cls(
            seed=seed,
            fault=draw.choices(get_args(Fault), [weights[f] for f in get_args(Fault)])[0],
            size=size,
            num_layers=num_layers,
            prefetch_step=draw.randint(0, num_layers - 1),
            rank=draw.randrange(size),
            forward=draw.randrange(WHILE_LOADING, FORWARDS),
            layer=draw.randrange(num_layers),
        )


@torch.inference_mode()
def forwards(rank: int, schedule: Schedule) -> str:
    struck = rank == schedule.rank
    mismatched = struck and schedule.fault == "mismatch"
    plain = Stack(schedule.num_layers, seed=7)
    stack = Stack(schedule.num_layers + mismatched, seed=7)
    if struck and schedule.forward == WHILE_LOADING:
        strike(schedule)
    series = shard(stack, schedule.prefetch_step, verify=True)
    if struck and schedule.fault == "corrupt":
        corrupt(series, schedule.layer)
    generator = torch.Generator().manual_seed(schedule.seed)
    for forward in range(FORWARDS):
        x = expected = torch.randn(4, WIDTH, generator=generator)
        series.slots.poison()
        for layer, linear in enumerate(stack.linears):
            if struck and (forward, layer) == (schedule.forward, schedule.layer):
                strike(schedule)
            reach_layer(linear)
            wait_layer(linear)
            x = torch.tanh(linear(x))
        for linear in plain.linears:
            expected = torch.tanh(linear(expected))
        if not torch.equal(x, expected):
            return "WRONG"
    return "right"


def strike(schedule: Schedule) -> None:
    if schedule.fault == "late":
        time.sleep(random.Random(schedule.seed).random() / 10)
    elif schedule.fault == "stall":
        time.sleep(STALL_S)
    elif schedule.fault == "death":
        os._exit(1)


class Corrupting(Ticket):
    """Arrives with another byte than was sent."""

    def __init__(self, inner: Ticket, slot: torch.Tensor) -> None:
        super().__init__(inner._device, inner._arrived)
        self._slot = slot

    def wait(self) -> None:
        super().wait()
        self._slot.view(torch.uint8)[0, 0] ^= 1


def corrupt(series: ShardedSeries, position: int) -> None:
    """From now on the link corrupts what arrives for `position` on this rank."""
    start = series.transport.start

    def corrupting(moved: int, slot: int) -> Ticket:
        ticket = start(moved, slot)
        if moved != position or series.owns(moved):
            return ticket
        return Corrupting(ticket, series.slots.tensors[slot][0])

    series.transport.start = corrupting


def run_of(schedule: Schedule) -> Run:
    return Run(
        schedule.size,
        SHORT_S if schedule.fault == "stall" else LONG_S,
        lambda rank: lambda meet: forwards(rank, schedule),
        named=(MismatchError, TransportError),
        together=schedule.fault == "mismatch",  # before another's sockets close
    )


def check(schedule: Schedule, came: list[str]) -> None:
    said = f"{schedule}: {came}"
    others = [came[rank] for rank in range(schedule.size) if rank != schedule.rank]
    assert not any(text.startswith("UNNAMED") for text in came), said
    if schedule.fault == "late":
        assert came == ["right"] * schedule.size, said
    elif schedule.fault == "mismatch":
        assert all(text.startswith("MismatchError: the ranks of a layer") for text in came), said
    elif schedule.fault == "corrupt":
        owner = schedule.layer % schedule.size
        named = f"MismatchError: rank {schedule.rank}: layer {schedule.layer} of series 'linear'"
        mine = came[schedule.rank]
        assert mine == "right" if owner == schedule.rank else mine.startswith(named), said
        assert all(text == "right" or is_lost(text, schedule) for text in others), said
    else:
        assert all(text == "right" or is_lost(text, schedule) for text in others), said
        assert came[schedule.rank] == "nothing" or "WRONG" not in came[schedule.rank], said


def is_lost(text: str, schedule: Schedule) -> bool:
    """Whether a rank says which layer did not come, or that the ranks could not be compared."""
    named = [
        f"layer {layer} of series 'linear', owned by rank {layer % schedule.size}, could not"
        for layer in range(schedule.num_layers)
    ]
    if schedule.forward == WHILE_LOADING:
        named += ["the ranks could not compare what they hold", "no private groups could be formed"]
    return text.startswith("TransportError: rank ") and any(name in text for name in named)


@pytest.mark.parametrize(
    "seeds", [range(40), pytest.param(range(40, 1000), marks=[MATRIX, pytest.mark.timeout(3600)])]
)
def test_each_ends_right_or_with_a_named_error(seeds: range, tmp_path: Path) -> None:
    for seed in seeds:
        schedule = Schedule.drawn(seed)
        place = tmp_path / str(seed)
        place.mkdir()
        check(schedule, outcome(run_of(schedule), place))
