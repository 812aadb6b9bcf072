"""Generated faults where some forwards move weights and others tokens, over real gloo ranks.

One rank is late, dies, or stalls for longer than the group waits: before, within or after a linear.
Each run ends right or with a named error, and none hangs.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import linear

from gloo.moving import bind_moving, tokens_of
from gloo.stack import WIDTH, Stack, shard
from vllm_layershard.errors import LayerShardError
from vllm_layershard.plan.move import MoveRule
from vllm_layershard.runtime.moves.linear import Compute, MovedLinear
from vllm_layershard.runtime.moves.ops import bind_linear, order_on

LONG_S = 60.0
SHORT_S = 2.0
"""Of a group in which a rank stalls."""
HANG_S = 120.0
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
        return cls(
            seed=seed,
            fault=draw.choices(get_args(Fault), [4, 6, 1])[0],
            moment=moment,
            size=size,
            prefetch_step=draw.randrange(LAYERS),
            # within a linear whose tokens move only its owner computes
            rank=layer % size if moment == "within" else draw.randrange(size),
            forward=draw.randrange(FORWARDS),
            layer=layer,
            counts=tuple(counts),
        )


def one_rank(rank: int, schedule: Schedule, place: str) -> None:
    """Write what came of it to a file; nothing if this rank died."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{place}/store", schedule.size)
    limit = datetime.timedelta(seconds=SHORT_S if schedule.fault == "stall" else LONG_S)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=schedule.size, timeout=limit)
    try:
        came = forwards(rank, schedule, lambda: all_write(store, "loaded", rank, schedule.size))
    except LayerShardError as error:
        came = f"{type(error).__name__}: {error}"
    except BaseException as error:
        came = f"UNNAMED {type(error).__name__}: {error}"
    Path(place, str(rank)).write_text(came)
    if schedule.fault == "late":
        all_write(store, "ended", rank, schedule.size)
    os._exit(0)


def all_write(store: dist.Store, subject: str, rank: int, size: int) -> None:
    """Return once every rank has come here."""
    store.set(f"{subject}/{rank}", "")
    store.wait([f"{subject}/{other}" for other in range(size)], datetime.timedelta(seconds=LONG_S))


@torch.inference_mode()
def forwards(rank: int, schedule: Schedule, meet: Callable[[], None]) -> str:
    plain, stack = Stack(LAYERS, seed=7), Stack(LAYERS, seed=7)
    series = shard(stack, schedule.prefetch_step, verify=True)
    now = [0]
    rule = MoveRule("auto", WEIGHTS_FROM)

    def reached(moment: str, layer: int) -> None:
        planned = (schedule.rank, schedule.moment, schedule.forward, schedule.layer)
        if (rank, moment, now[0], layer) == planned:
            strike(schedule)

    moving = bind_moving(
        series, list(stack.linears), "linear", rule, lambda _: schedule.counts[now[0]]
    )

    def struck(module: nn.Module, layer: int) -> Compute:
        def compute(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            reached("within", layer)
            return linear(x, module.weight, bias)

        return compute

    for layer, module in enumerate(stack.linears):
        bind_linear(MovedLinear(moving, layer, f"layers.{layer}.linear", struck(module, layer)))
    meet()
    wrong = 0
    for forward, counts in enumerate(schedule.counts):
        now[0] = forward
        weights = rule.moves_weights(counts)
        for layer, module in enumerate(plain.linears):
            everyone = [tokens_of(r, n, WIDTH, forward).float() for r, n in enumerate(counts)]
            rows = everyone[rank] if weights else torch.cat(everyone)
            expected = linear(rows, module.weight, module.bias)
            if not weights:
                expected = expected.split(list(counts))[rank]
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


def outcome(schedule: Schedule, place: Path) -> list[str]:
    """What came of it on every rank; "nothing" of one that died, "hung" of one that was killed."""
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=one_rank, args=(rank, schedule, str(place)))
        for rank in range(schedule.size)
    ]
    for process in processes:
        process.start()
    deadline, hung = time.monotonic() + HANG_S, set()
    for rank, process in enumerate(processes):
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            hung.add(rank)
            process.kill()
            process.join()
    files = [place / str(rank) for rank in range(schedule.size)]
    return [
        "hung" if rank in hung else file.read_text() if file.exists() else "nothing"
        for rank, file in enumerate(files)
    ]


def check(schedule: Schedule, came: list[str]) -> None:
    said = f"{schedule}: {came}"
    for rank, text in enumerate(came):
        if schedule.fault == "late":
            assert text == "right", said
        elif schedule.fault == "death" and rank == schedule.rank:
            assert text == "nothing", said
        else:
            assert text == "right" or is_lost(text), said


def is_lost(text: str) -> bool:
    return text.startswith("TransportError: rank ") and "could not" in text


@pytest.mark.parametrize(
    "seeds", [range(20), pytest.param(range(20, 300), marks=[MATRIX, pytest.mark.timeout(3600)])]
)
def test_each_ends_right_or_with_a_named_error(seeds: range, tmp_path: Path) -> None:
    for seed in seeds:
        schedule = Schedule.drawn(seed)
        place = tmp_path / str(seed)
        place.mkdir()
        check(schedule, outcome(schedule, place))
