"""A replica that is killed takes nobody along: the other goes on, and it may come back.

At twenty random moments, while it loads or while it answers. Whatever is said, by whom and when, is
what an engine alone says, to the bit.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosted.replica import Replica, Said
from recital import model_path
from serving.questions import questions
from serving.server import free_port
from serving.weights import with_other_weights
from vllm_layershard.runtime import shared_memory

LAYERS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
FEW, OFTEN = 2, 20


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    shared_memory.sweep()


@pytest.fixture(scope="module")
def dense() -> Path:
    return model_path("dense")


@pytest.fixture(scope="module")
def prompts(dense) -> list[list[int]]:
    return questions(dense)[:16]


@pytest.fixture(scope="module")
def expected(dense, prompts) -> dict[int, Said]:
    with Replica(dense, 0, free_port(), None) as alone:
        alone.wait_until_ready()
        return alone.ask(prompts)


@pytest.mark.parametrize(
    "kills", [FEW, pytest.param(OFTEN, marks=pytest.mark.matrix(part="faults"))]
)
@pytest.mark.timeout(3600)
def test_the_other_goes_on_and_no_wrong_token_is_said(kills, dense, prompts, expected):
    draw, port, sharding = random.Random(kills), free_port(), {"layers": LAYERS, "verify": True}
    moments = []
    replicas = [Replica(dense, rank, port, sharding) for rank in (0, 1)]
    try:
        started = time.monotonic()
        for replica in replicas:
            replica.wait_until_ready()
        start_s = time.monotonic() - started
        started = time.monotonic()
        assert replicas[0].ask(prompts) == replicas[1].ask(prompts) == expected
        answer_s = time.monotonic() - started
        for _ in range(kills):
            rank = draw.randrange(2)
            victim, survivor = replicas[rank], replicas[1 - rank]
            for replica in replicas:
                replica.begin(prompts)
            moments.append(draw.uniform(0, answer_s))
            time.sleep(moments[-1])
            victim.kill()
            assert victim.answers(len(prompts)).items() <= expected.items()
            assert survivor.answers(len(prompts)) == expected
            if draw.random() < 0.5:  # killed again, while it loads
                with Replica(dense, rank, port, sharding):
                    survivor.begin(prompts)
                    time.sleep(draw.uniform(0, start_s))
                assert survivor.answers(len(prompts)) == expected
            left = [name for name in shared_memory.names() if shared_memory.is_left_over(name)]
            assert left, "there is something to remove"
            replicas[rank] = Replica(dense, rank, port, sharding)
            replicas[rank].wait_until_ready()
            assert not [name for name in left if shared_memory.is_left_over(name)]
            assert replicas[rank].ask(prompts) == survivor.ask(prompts) == expected
    finally:
        for replica in replicas:
            replica.kill()
    print(f"killed after {', '.join(f'{m:.2f}' for m in moments)} s of {answer_s:.2f}")


def test_a_replica_with_another_checkpoint_is_refused_and_the_other_goes_on(
    dense, prompts, expected, tmp_path
):
    other = with_other_weights(dense, tmp_path / "other", ("q_proj",))
    port, sharding = free_port(), {"layers": LAYERS}
    with Replica(dense, 0, port, sharding) as survivor:
        with Replica(dense, 1, port, sharding) as first:
            survivor.wait_until_ready()
            first.wait_until_ready()
            assert first.ask(prompts) == expected
        with (
            Replica(other, 1, port, sharding) as stranger,
            pytest.raises(
                RuntimeError,
                match="MismatchError: the ranks of layer sharding were given different",
            ),
        ):
            stranger.wait_until_ready()
        assert survivor.ask(prompts) == expected
