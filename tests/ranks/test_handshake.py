"""The handshake over a real key-value store between real processes: named, and never a hang.

How long a rank waits is told by a clock that passes only where the case has come as far, so that a
slow machine changes nothing. A rank that dies or hangs really does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import TCPStore

from vllm_layershard.errors import MismatchError, PlanError
from vllm_layershard.runtime.ranks import handshake as module
from vllm_layershard.runtime.ranks.handshake import Handshake

HANG_S = 120
HOUR_S = 3600.0
PATIENCE_S = 60.0
SHORT_S = 0.5
"""Of those who wait for a store that answers nothing: nobody is late there."""

ALONE = {"layers": ["o_proj"], "version": "0.1"}
WORLD = (0, 1, 2)

Work = Callable[[Handshake, int], None]
Keys = Sequence[str]


class Clock:
    """Stands still until others have written keys; from then on each sleep takes an hour.

    `waiting` are the keys while its rank waits for others, `leaving` those while it stays for them
    to read why it ends. Without keys the clock never moves.
    """

    def __init__(self, store: Store, rank: int, waiting: Keys = (), leaving: Keys = ()) -> None:
        self._store, self._leaves = store, f"known/{rank}"
        self._waiting, self._leaving = list(waiting), list(leaving)
        self._now_s = 0.0

    def monotonic(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
        keys = self._leaving if self._store.check([self._leaves]) else self._waiting
        if keys and self._store.check(keys):
            self._now_s += HOUR_S


def one_rank(rank: int, port: int, work: Work, place: Path) -> None:
    long = timedelta(seconds=HANG_S)
    store = TCPStore("127.0.0.1", port, 3, rank == 0, long, wait_for_workers=True)
    shared = PrefixStore("test", store)
    shared.set(f"here/{rank}", "")
    if rank == 0:  # the store goes with this rank
        shared.wait([f"here/{other}" for other in WORLD], long)
    if work in HOLDER_FAILS:
        module._FAREWELL_S = SHORT_S
    else:
        module.time = Clock(shared, rank, *CLOCKS.get(work, {}).get(rank, ()))
    try:
        patience_s = SHORT_S if work in HOLDER_FAILS else PATIENCE_S
        work(Handshake(shared, rank, 3, patience_s), rank)
        came = "alike"
    except MismatchError as error:
        came = str(error)
    except PlanError as error:
        came = f"PlanError: {error}"
    (place / str(rank)).write_text(came)
    if work is alike:
        with suppress(RuntimeError):
            shared.set(f"bye/{rank}", "")
            if rank == 0:
                shared.wait(["bye/1", "bye/2"], long)
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


def outcome(work: Work, processes: list[Any], place: Path, deadline: float) -> list[str | None]:
    """What each rank met, None for one that died or hung."""
    ending = [rank for rank in WORLD if CASES[work][rank] is not None]
    for rank in ending:
        processes[rank].join(max(0.0, deadline - time.monotonic()))
    for process in processes:  # those that stopped, and those that wait
        process.kill()
        process.join()
    files = [place / str(rank) for rank in WORLD]
    return [file.read_text() if file.exists() else None for file in files]


def alike(handshake: Handshake, rank: int) -> None:
    time.sleep(rank / 4)  # in this order, if nothing hinders them
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
    if rank != 1:
        handshake.compare("configuration", {WORLD: ALONE})


def too_late(handshake: Handshake, rank: int) -> None:
    if rank == 2:
        handshake._store.wait(["end"], timedelta(seconds=HANG_S))
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
    handshake.compare("plan", {WORLD: ALONE})


def ends_over_what_was_gathered(handshake: Handshake, rank: int) -> None:
    """All have come and find the same: one that is late is told no other reason than the rest."""
    if rank == 2:
        handshake._store.set("room/values/2", "2")
        handshake._store.wait(["end"], timedelta(seconds=HANG_S))
    error = PlanError(f"found {handshake.gather('room', rank)}")
    handshake.leave(error)
    raise error


def the_holder_of_the_store_dies(handshake: Handshake, rank: int) -> None:
    if rank == 0:
        os._exit(1)
    handshake.compare("configuration", {WORLD: ALONE})


def the_holder_of_the_store_hangs(handshake: Handshake, rank: int) -> None:
    if rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    handshake.compare("configuration", {WORLD: ALONE})


VERSION = "rank 1 against rank 0: configuration.version: '0.1' != '0.2'"
MISSING = "of the world's 3 did not come to compare the "
HOLDER = "rank 0, which holds the world's key-value store, died or hangs"

CASES: dict[Work, Sequence[str | None]] = {
    alike: ["alike"] * 3,
    another_version: [VERSION] * 3,
    no_plan: ["rank 2 against rank 0: plan: 'a plan' != None"] * 3,
    without_the_key: [f"rank 1 {MISSING}configuration", "alike", f"rank 1 {MISSING}configuration"],
    too_late: [f"rank 2 {MISSING}configuration"] * 3,
    dies: [f"rank 2 {MISSING}plan"] * 2 + [None],
    ends_in_an_error: ["PlanError: 'o"] + ["rank 0 ended: PlanError: 'o_proj' matches no"] * 2,
    ends_over_what_was_gathered: ["PlanError: found [0, 1, 2]"] * 3,
    the_holder_of_the_store_dies: [None, HOLDER, HOLDER],
    the_holder_of_the_store_hangs: [None, HOLDER, HOLDER],
}
HOLDER_FAILS = (the_holder_of_the_store_dies, the_holder_of_the_store_hangs)

CLOCKS: dict[Work, Mapping[int, tuple[Keys, ...]]] = {
    without_the_key: {
        0: (["configuration/digests/2"], ["known/2"]),
        2: (["configuration/digests/0"],),
    },
    too_late: {0: (["configuration/digests/1"],), 1: (["configuration/digests/0"],)},
    dies: {0: (["plan/digests/1"], ["known/1"]), 1: (["plan/digests/0"],)},
}
"""By rank, what its clock waits for: that all who will come have come, and that they know why."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[Work, list[str | None]]:
    """All cases at once: they mostly wait."""
    place = tmp_path_factory.mktemp("handshake")
    ranks = {work: started(work, place / work.__name__) for work in CASES}
    deadline = time.monotonic() + HANG_S
    return {work: outcome(work, ranks[work], place / work.__name__, deadline) for work in CASES}


@pytest.mark.parametrize("work", CASES, ids=lambda work: work.__name__)
def test_every_rank_ends_in_time_and_says_why(
    work: Work, outcomes: dict[Work, list[str | None]]
) -> None:
    came = outcomes[work]
    for rank, (text, part) in enumerate(zip(came, CASES[work], strict=True)):
        assert (text is None) == (part is None), (rank, came)
        assert part is None or text is None or part in text, (rank, came)
        assert work is alike or text != "alike" or rank == 1, (rank, came)
