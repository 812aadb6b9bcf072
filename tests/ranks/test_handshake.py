"""The handshake over a real key-value store between real processes: named, and never a hang."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch._C._distributed_c10d import PrefixStore
from torch.distributed import TCPStore

from vllm_layershard.errors import MismatchError, PlanError
from vllm_layershard.runtime.ranks.handshake import Handshake

PATIENCE_S = 3.0
LATE_S = 1.0
BOUND_S = 20.0
"""Past any patience and farewell, and under what torch would wait."""

ALONE = {"layers": ["o_proj"], "version": "0.1"}
WORLD = (0, 1, 2)

Work = Callable[[Handshake, int], None]


def one_rank(rank: int, port: int, work: Work, place: Path) -> None:
    store = TCPStore("127.0.0.1", port, 3, rank == 0, timedelta(seconds=60), wait_for_workers=True)
    try:
        work(Handshake(PrefixStore("test", store), rank, 3, PATIENCE_S), rank)
        came = "alike"
    except MismatchError as error:
        came = str(error)
    except PlanError as error:
        came = f"PlanError: {error}"
    (place / str(rank)).write_text(came)
    with suppress(RuntimeError):
        store.set(f"bye/{rank}", "")
        if rank == 0 and came == "alike":  # the store goes with this rank
            store.wait(["bye/1", "bye/2"], timedelta(seconds=PATIENCE_S))
    os._exit(0)


def started(work: Work, place: Path) -> list[Any]:
    """Three ranks that do this work."""
    place.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=one_rank, args=(r, port, work, place)) for r in WORLD]
    for process in processes:
        process.start()
    return processes


def outcome(processes: list[Any], place: Path, deadline: float) -> list[str | None]:
    """What each rank met, None for one that died or hung."""
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    files = [place / str(rank) for rank in WORLD]
    return [file.read_text() if file.exists() else None for file in files]


def alike(handshake: Handshake, rank: int) -> None:
    time.sleep(LATE_S * rank / 2)
    handshake.compare("configuration", {WORLD: ALONE})
    pair = {(0, 2): "stage 0"} if rank != 1 else {(1,): "stage 1"}
    handshake.compare("plan", pair)


def another_version(handshake: Handshake, rank: int) -> None:
    mine = ALONE | {"version": "0.2"} if rank == 1 else ALONE
    handshake.compare("configuration", {WORLD: mine})


def no_plan(handshake: Handshake, rank: int) -> None:
    """A group's plan differs: those outside of it end with the same error."""
    handshake.compare("configuration", {WORLD: ALONE})
    handshake.compare("plan", {(0, 2): "a plan"} if rank == 0 else {})


def without_the_key(handshake: Handshake, rank: int) -> None:
    if rank == 1:
        time.sleep(2 * PATIENCE_S)
    else:
        handshake.compare("configuration", {WORLD: ALONE})


def too_late(handshake: Handshake, rank: int) -> None:
    time.sleep(0 if rank == 0 else LATE_S if rank == 1 else PATIENCE_S + 2 * LATE_S)
    handshake.compare("configuration", {WORLD: ALONE})


def dies(handshake: Handshake, rank: int) -> None:
    handshake.compare("configuration", {WORLD: ALONE})
    if rank == 2:
        os._exit(1)
    handshake.compare("plan", {WORLD: ALONE})


def ends_in_an_error(handshake: Handshake, rank: int) -> None:
    handshake.compare("configuration", {WORLD: ALONE})
    if rank == 0:
        error = PlanError("'o_proj' matches no linear")
        handshake.leave(error)
        raise error
    time.sleep(LATE_S)
    handshake.compare("plan", {WORLD: ALONE})


def the_host_of_the_store_dies(handshake: Handshake, rank: int) -> None:
    if rank == 0:
        time.sleep(LATE_S)
        os._exit(1)
    handshake.compare("configuration", {WORLD: ALONE})


def the_host_of_the_store_stalls(handshake: Handshake, rank: int) -> None:
    if rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(LATE_S)
    handshake.compare("configuration", {WORLD: ALONE})


VERSION = "rank 1 against rank 0: configuration.version: '0.1' != '0.2'"
MISSING = "of the world's 3 did not come to compare the "
HOST = "rank 0, which hosts the world's key-value store, died or stalled"

CASES: dict[Work, Sequence[str | None]] = {
    alike: ["alike"] * 3,
    another_version: [VERSION] * 3,
    no_plan: ["rank 2 against rank 0: plan: 'a plan' != None"] * 3,
    without_the_key: [f"rank 1 {MISSING}configuration", "alike", f"rank 1 {MISSING}configuration"],
    too_late: [f"rank 2 {MISSING}configuration"] * 2 + ["rank "],
    dies: [f"rank 2 {MISSING}plan"] * 2 + [None],
    ends_in_an_error: ["PlanError: 'o"] + ["rank 0 ended: PlanError: 'o_proj' matches no"] * 2,
    the_host_of_the_store_dies: [None, HOST, HOST],
    the_host_of_the_store_stalls: [None, HOST, HOST],
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[Work, list[str | None]]:
    """All cases at once: they mostly wait."""
    place = tmp_path_factory.mktemp("handshake")
    ranks = {work: started(work, place / work.__name__) for work in CASES}
    deadline = time.monotonic() + BOUND_S
    return {work: outcome(ranks[work], place / work.__name__, deadline) for work in CASES}


@pytest.mark.parametrize("work", CASES, ids=lambda work: work.__name__)
def test_every_rank_ends_in_time_and_says_why(
    work: Work, outcomes: dict[Work, list[str | None]]
) -> None:
    came = outcomes[work]
    for rank, (text, part) in enumerate(zip(came, CASES[work], strict=True)):
        assert (text is None) == (part is None), (rank, came)
        assert part is None or text is None or part in text, (rank, came)
        assert work is alike or text != "alike" or rank == 1, (rank, came)
