"""Tokens a second of pipeline stages: so many decodes in flight, each on one stage at a time."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

import pytest

from vllm_layershard import Layout, plan_model
from vllm_layershard.estimate.activations.clock import round_seconds
from vllm_layershard.estimate.roofline import Roofline
from vllm_layershard.models import Batch, Sharding, layer_operations
from vllm_layershard.plan import stage_layers
from vllm_layershard.planner.results.plan_result import PlanResult


def simulated(decodes: Sequence[Sequence[float]], rounds: int = 200) -> float:
    """Seconds of a round of decodes that queue at each stage, once the start is forgotten.

    Event by event: a stage takes the next decode that has arrived, and hands it on.
    """
    stages = len(decodes[0])
    arrived = [deque[tuple[float, int]]() for _ in range(stages)]
    arrived[0].extend((0.0, decode) for decode in range(len(decodes)))
    free, ends = [0.0] * stages, list[float]()
    while len(ends) < rounds * len(decodes):
        starts = [max(free[s], arrived[s][0][0]) if arrived[s] else None for s in range(stages)]
        stage = min((s for s in range(stages) if starts[s] is not None), key=lambda s: starts[s])
        _, decode = arrived[stage].popleft()
        free[stage] = starts[stage] + decodes[decode][stage]
        arrived[(stage + 1) % stages].append((free[stage], decode))
        if stage == stages - 1:
            ends.append(free[stage])
    half = rounds // 2 * len(decodes)
    return (ends[-1] - ends[half - 1]) / (rounds - rounds // 2)


@pytest.mark.parametrize("seed", range(60))
def test_a_round_of_decodes_in_flight_is_what_a_simulation_says(seed: int) -> None:
    """Up to five stages, and as many decodes or fewer, some of them larger than the others."""
    chance = random.Random(seed)
    stages = [chance.uniform(0.1, 1) for _ in range(chance.randint(1, 5))]
    number = chance.randint(1, len(stages))
    large = chance.randint(0, number)
    decodes = [[1.7 * t for t in stages]] * large + [stages] * (number - large)
    assert round_seconds(decodes) == pytest.approx(simulated(decodes), rel=0.02)


@pytest.mark.parametrize("seed", range(20))
def test_no_round_is_told_too_short(seed: int) -> None:
    """Where each decode has another slowest stage."""
    chance = random.Random(seed)
    decodes = [[chance.uniform(0.1, 1) for _ in range(4)] for _ in range(3)]
    assert round_seconds(decodes) >= 0.99 * simulated(decodes)


def _result(stages: int, context: int, ranks: int) -> PlanResult:
    layout = Layout(dp=ranks, pp=stages, ep=True)
    return plan_model(
        "DeepSeek-V3",
        ["o_proj"],
        layout,
        hardware="H200",
        move="activations",
        context=context,
        batch=1,
    )


def _stages(planned: Sharding, roofline: Roofline, batch: Batch) -> list[float]:
    """Seconds of each stage without sharding, summed up operation by operation."""
    return [
        sum(
            roofline.seconds(operation)
            for layer_id in layers
            for operation in layer_operations(
                planned.model.blueprint, layer_id, planned.deployment, batch
            )
        )
        for layers in stage_layers(61, planned.deployment.layout.pp)
    ]


@pytest.mark.parametrize(
    ("stages", "context", "ranks", "sequences"),
    [
        (2, 4096, 4, None),
        (3, 4096, 4, None),
        (4, 1_000_000, 2, 2),
        (3, 400_000, 2, 1),
        (4, 400_000, 2, 5),
    ],
)
def test_tokens_a_second_are_those_of_the_decodes_in_flight(
    stages: int, context: int, ranks: int, sequences: int | None
) -> None:
    """Many sequences, fewer than stages, and a number that stages do not divide."""
    result = _result(stages, context, ranks)
    assert result.move is not None
    found, planned = result.move.unsharded_decode, result.planned
    assert found is not None
    assert sequences in (None, found.sequences)
    in_flight = min(stages, found.sequences)
    sizes = [len(range(i, found.sequences, in_flight)) for i in range(in_flight)]
    roofline = Roofline(result.forecast.hardware)
    each = [_stages(planned, roofline, Batch(size, context, decode=True)) for size in sizes]
    step = simulated(each)
    assert found.step_us == pytest.approx(step * 1e6, rel=0.02)
    assert found.tokens_per_second == pytest.approx(found.sequences / step, rel=0.02)
