"""Replicas that die under load, and the whole server with them; and what a server's end leaves.

vLLM 0.32 ends a server with the first of its engines. Engines that go on without the other are in
tests/vllm/loading/test_killed.py.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import OpenAIError

from recital import model_path
from serving.answers import Answer, ask
from serving.processes import named
from serving.questions import questions
from serving.server import Server
from vllm_layershard.runtime import shared_memory

pytestmark = [pytest.mark.serve, pytest.mark.matrix(part="ends"), pytest.mark.timeout(900)]

LAYERS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
MOMENTS = range(20)
UNDER_LOAD_S = 4.0
BOUND_S = 60


@pytest.fixture(scope="module")
def dense() -> Path:
    return model_path("dense")


@pytest.fixture(scope="module")
def asked(dense) -> list[list[int]]:
    return questions(dense)


@pytest.fixture(scope="module")
def plain(dense, asked, tmp_path_factory) -> list[Answer]:
    with Server(dense, tmp_path_factory.mktemp("plain") / "log") as server:
        return ask(server, asked)


def right_until_it_ends(server: Server, prompts, expected: list[Answer], rank: int) -> bool:
    """Ask one by one for a while, of which each answer is right; whether it went on to the end."""
    deadline = time.monotonic() + 2 * UNDER_LOAD_S
    while time.monotonic() < deadline:
        for prompt, answer in zip(prompts, expected, strict=True):
            try:
                assert ask(server, [prompt], rank=rank)[0].token_ids == answer.token_ids
            except OpenAIError:
                return False
    return True


@pytest.mark.parametrize("moment", MOMENTS)
def test_one_server_ends_with_its_first_replica(moment, dense, asked, plain, tmp_path):
    draw = random.Random(moment)
    with Server(dense, tmp_path / "log", sharding=LAYERS, api_servers=None) as server:
        workers = named("VLLM::Worker", server.groups)
        assert len(workers) == 2
        with ThreadPoolExecutor() as pool:
            asking = [
                pool.submit(right_until_it_ends, server, asked, plain, rank) for rank in (0, 1)
            ]
            time.sleep(draw.uniform(0, UNDER_LOAD_S))
            os.kill(draw.choice(workers), signal.SIGKILL)
            assert not any(one.result() for one in asking)
        assert server.wait_for_end(BOUND_S)[0] != 0
    left = [name for name in shared_memory.names() if shared_memory.is_left_over(name)]
    assert left, "it had no chance to clean up"
    weights = [name for name in left if re.search(r"-rank\d+-\d+$", name)]
    assert not weights, "gigabytes that nobody will look for"
    shared_memory.sweep()
    assert not set(left) & set(shared_memory.names())


def test_an_end_with_time_to_spare_leaves_nothing(dense, tmp_path):
    """Without --shutdown-timeout vLLM 0.32 kills its workers as soon as it is asked to end."""
    before = set(shared_memory.names())
    arguments = ("--shutdown-timeout", "30")
    with Server(
        dense, tmp_path / "log", sharding=LAYERS, arguments=arguments, api_servers=None
    ) as server:
        assert set(shared_memory.names()) - before
        server.end()
    assert not set(shared_memory.names()) - before
