"""The life of a server: idle ranks, requests that are given up, and an end that leaves nothing."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.answers import ask, check_identical
from serving.processes import alive, shared_memory
from serving.reports import check_reports
from serving.server import Server
from serving.streams import cut_off

pytestmark = [pytest.mark.serve, pytest.mark.matrix(part="modes")]

LAYERS = ["o_proj", "q_b_proj"]
LINGER_S = 30


@pytest.mark.timeout(900)
def test_idle_ranks_aborts_and_a_clean_end(model, prompts, tmp_path):
    """In turn on one server: each step asks what the unsharded server was asked, to the bit."""
    sharding = {"layers": LAYERS, "verify": True, "report_dir": str(tmp_path / "reports")}
    answers, left, lasting = {}, {}, {}
    for case, asked in (("plain", None), ("sharded", sharding)):
        before = set(shared_memory())
        with Server(model, tmp_path / case, sharding=asked, api_servers=None) as server:
            one_works = [ask(server, prompts, rank=rank) for rank in (0, 1)]
            with ThreadPoolExecutor() as pool:
                given_up = [pool.submit(cut_off, server, prompts[:8]) for _ in range(3)]
                during = ask(server, prompts)
                assert sum(one.result() for one in given_up) == 24
            answers[case] = [*one_works, during, ask(server, prompts)]
            if asked is not None:
                check_reports(tmp_path / "reports", model, LAYERS)
            server.end()
            lasting[case] = still_alive(server.groups)
        left[case] = len(set(shared_memory()) - before)
    for plain, sharded in zip(answers["plain"], answers["sharded"], strict=True):
        assert [a.token_ids for a in sharded] == [a.token_ids for a in plain]
    for step in (0, 1, 3):  # aborts come when they come: what is batched with what is chance
        check_identical(answers["sharded"][step], answers["plain"][step])
    assert lasting == {"plain": [], "sharded": []}
    assert left["sharded"] <= left["plain"]


def still_alive(groups: list[int]) -> list[int]:
    """The processes that outlive the first one of their group by more than a while."""
    deadline = time.monotonic() + LINGER_S
    while alive(groups) and time.monotonic() < deadline:
        time.sleep(0.2)
    return alive(groups)
