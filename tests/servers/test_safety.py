"""Nodes that do not agree, and ranks that die or hang: the server ends, and says why."""

from __future__ import annotations

import re
import signal
import time

import pytest
from openai import OpenAIError

from serving import probe
from serving.answers import ask
from serving.layout import Layout
from serving.processes import named
from serving.server import Server

pytestmark = [pytest.mark.serve, pytest.mark.matrix(part="ends"), pytest.mark.timeout(900)]

LAYERS = ["o_proj", "q_b_proj"]
TWO_NODES = Layout(dp=2, nodes=2)
START_S = 400
"""Two nodes that start and end; the second one waits for three minutes for the first's word."""

GROUP_S = 20
BOUND_S = 120

OTHERWISE = {
    "other layers": (
        """{"layer_sharding": ["o_proj"]}""",
        r"rank 1 against rank 0: configuration\.layer_sharding\.layers: "
        r"\['o_proj', 'q_b_proj'\] != \['o_proj'\]",
        2,
    ),
    "no key": (
        "{}",
        r"rank 1 of the world's 2 did not come to compare the configuration within 180 s",
        1,
    ),
}
"""What the second node is given, what is said of it, and how many ranks say so, and end.

A node without the key runs nothing that could end it: vLLM 0.32 leaves it waiting for the other.
"""


@pytest.mark.parametrize("case", OTHERWISE)
def test_a_node_that_shards_otherwise_is_named(case, model, tmp_path):
    additional, said, ranks = OTHERWISE[case]
    server = Server(
        model,
        tmp_path / "log",
        layout=TWO_NODES,
        sharding=LAYERS,
        elsewhere=("--additional-config", additional),
        api_servers=None,
    )
    try:
        server.start()
        codes = server.wait_for_end(START_S, nodes=ranks)
    finally:
        server.stop()
    assert codes[0] != 0  # a headless node of vLLM 0.32 ends with 0 all the same
    log = server.log_text()
    said_by = set(re.findall(rf"Worker_DP(\d) .*MismatchError: .*{said}", log))
    assert len(said_by) == ranks, log[-6000:]


@pytest.mark.parametrize("kind", ["death", "stall"])
def test_a_rank_that_fails_under_load_ends_the_server(kind, model, prompts, tmp_path):
    """With step 0 the others wait for the movement next: the message names it."""
    fatal = signal.SIGKILL if kind == "death" else signal.SIGSTOP
    group = ("--distributed-timeout-seconds", str(GROUP_S))
    with Server(
        model,
        tmp_path / "log",
        sharding={"layers": LAYERS, "prefetch_step": 0},
        arguments=(*group, *probe.ARGUMENTS),
        environment=probe.ENVIRONMENT,
        api_servers=None,
    ) as server:
        expected = ask(server, prompts)
        body = {"method": "fail_at", "args": [1, "q_b_proj", 5, int(fatal)]}
        server.post("/collective_rpc", body)
        started = time.monotonic()
        with pytest.raises(OpenAIError):
            assert ask(server, prompts) == expected, "a wrong answer was given"
        codes = server.wait_for_end(BOUND_S)
        print(f"{kind}: ended with {codes} after {time.monotonic() - started:.0f} s")
        stopped = named("VLLM::Worker_DP1", server.groups)
    assert codes[0] != 0
    assert len(stopped) <= (kind == "stall"), "it is gone, unless it cannot go"
    assert re.search(SAID, server.log_text()), server.log_text()[-6000:]


SAID = (
    r"TransportError: rank 0: layer 5 of series 'q_b_proj', owned by rank 1, could not be moved: "
    r"a rank of the group \[0, 1\] died or hangs"
)
