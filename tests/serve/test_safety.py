"""Nodes that do not agree, and ranks that die or stall: the server ends, and says why."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from contextlib import suppress

import pytest
from openai import OpenAIError

from servers.answers import ask
from servers.layout import Layout
from servers.processes import alive, named
from servers.server import Server

pytestmark = [pytest.mark.serve, pytest.mark.matrix, pytest.mark.timeout(900)]

LAYERS = ["o_proj", "q_b_proj"]
TWO_NODES = Layout(dp=2, nodes=2)
START_S = 400
"""Two nodes that start and end; the second one waits for three minutes for the first's word."""

GROUP_S = 20
BOUND_S = 120

OTHERWISE = {
    "other layers": (
        """{"layer_sharding": ["o_proj"]}""",
        r"rank 1 against rank 0: its\.layer_sharding\.layers: \['o_proj', 'q_b_proj'\] != "
        r"\['o_proj'\]",
    ),
    "no key": (
        "{}",
        r"rank 0: ranks \[1\] of 2 have not come to shard their model within 180 s",
    ),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_a_node_that_shards_otherwise_ends_both(case, model, tmp_path):
    additional, said = OTHERWISE[case]
    server = Server(
        model,
        tmp_path / "log",
        layout=TWO_NODES,
        sharding=LAYERS,
        elsewhere=("--additional-config", additional),
    )
    try:
        server.start()
        codes = server.wait_for_end(START_S)
    finally:
        server.stop()
    assert 0 not in codes
    errors = re.findall(rf"MismatchError: .*{said}", server.log_text())
    assert errors, server.log_text()[-6000:]


@pytest.mark.parametrize("kind", ["death", "stall"])
def test_a_rank_that_fails_under_load_ends_the_server(kind, model, prompts, tmp_path):
    """Nothing wrong is said meanwhile: who gets an answer gets the right one."""
    arguments = (
        "--distributed-timeout-seconds", str(GROUP_S),
        "--cpu-distributed-timeout-seconds", str(GROUP_S),
    )  # fmt: skip
    with Server(
        model, tmp_path / "log", layout=TWO_NODES, sharding=LAYERS, arguments=arguments
    ) as server:
        expected = ask(server, prompts)
        over = threading.Event()

        def load() -> None:
            with suppress(OpenAIError):
                while not over.is_set():
                    assert ask(server, prompts) == expected

        asking = threading.Thread(target=load)
        asking.start()
        time.sleep(2)
        (worker,) = named("VLLM::Worker_DP1", server.groups)
        started = time.monotonic()
        os.kill(worker, signal.SIGKILL if kind == "death" else signal.SIGSTOP)
        codes = server.wait_for_end(BOUND_S)
        print(f"{kind}: every node ended after {time.monotonic() - started:.0f} s, {codes}")
        over.set()
        asking.join()
        lasting = [pid for pid in alive(server.groups) if pid != worker]
    log = server.log_text()
    assert lasting == []
    assert re.search(r"(layer \d+ of series '\S+', owned by rank \d)|(died)", log), log[-6000:]
