"""Play a schedule over real processes, and tell whatever was not as promised."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from forked import CONTEXT, forked
from reloads.rank import live
from reloads.schedule import PATIENCE_S, PAUSE_S, Schedule

HANG_S = 60
STARTS = 3


@dataclass
class Outcome:
    """`faults` are broken promises; `whole` says whether all ranks are on the new weights."""

    schedule: Schedule
    faults: list[str] = field(default_factory=list)
    whole: bool = False
    said: list[Any] = field(default_factory=list)


def play(schedule: Schedule) -> Outcome:
    """The first reload meets the fault; then there are others, until all ranks should be whole."""
    outcome = Outcome(schedule)
    with _Ranks(schedule, outcome) as ranks:
        ranks.ask_all("forward")
        ranks.check({1})
        fault = schedule.fault
        ranks.ask([fault.rank], "prepare", fault)
        early = [rank for rank in ranks.alive if fault.kind != "late" or rank != fault.rank]
        if fault.where == "forward":
            time.sleep(0.2)  # it is in that forward
        ranks.begin(early, "reload", 2)
        if fault.kind == "late":
            time.sleep(PAUSE_S)
            ranks.begin([fault.rank], "reload", 2)
        ranks.collect()
        ranks.ask_all("forward")
        ranks.check({1, 2})
        ranks.ask_all("forward")
        ranks.check_one_generation()
        if schedule.retry == "one":
            alone = fault.rank if fault.rank in ranks.alive else ranks.alive[0]
            ranks.ask([alone], "reload", 3)
            ranks.ask_all("forward")
            ranks.check({1, 2})
        ranks.ask_all("reload", 3)
        ranks.ask_all("forward")
        ranks.check({1, 2, 3})
        said = ranks.ask_all("forward")
        outcome.whole = len(said) == schedule.size and all(
            one == {"generation 3"} for one in said.values()
        )
        if schedule.kills and schedule.sharing == "replicas":
            _restart(ranks)
    return outcome


def _restart(ranks: _Ranks) -> None:
    """The killed one comes back with the first generation: it is sent away, or all go on."""
    rank = ranks.outcome.schedule.fault.rank
    if ranks.start(rank) != "ready":
        return
    ranks.ask_all("forward")
    ranks.check({1})
    ranks.ask_all("reload", 4)
    said = ranks.ask_all("forward")
    ranks.check({1, 4})
    if any("generation 4" not in one for one in said.values()):
        ranks.outcome.faults.append(f"after a restart all can reload: {said}")


class _Ranks:
    """The processes of one schedule. A context: gone on exit."""

    def __init__(self, schedule: Schedule, outcome: Outcome) -> None:
        self.outcome = outcome
        self._schedule = schedule
        self._name = f"reloads{token_hex(4)}"
        self._port = 0
        self._processes: dict[int, Any] = {}
        self._pipes: dict[int, Any] = {}
        self._latest: dict[int, Any] = {}
        self._asked: list[int] = []
        self._over = threading.Event()

    def __enter__(self) -> _Ranks:
        for _ in range(STARTS):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._port = probe.getsockname()[1]
            for rank in range(self._schedule.size):
                self._fork(rank)
            said = {0: self._heard(0)}
            if "EADDRINUSE" not in str(said[0]):
                break
            for process in self._processes.values():  # another has taken the port meanwhile
                process.kill()
                process.join()
        said |= {rank: self._heard(rank) for rank in range(1, self._schedule.size)}
        assert set(said.values()) == {"ready"}, said
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for process in self._processes.values():
            process.kill()
            process.join()

    @property
    def alive(self) -> list[int]:
        return sorted(self._pipes)

    def _fork(self, rank: int) -> None:
        mine, theirs = CONTEXT.Pipe()
        process = forked(live, theirs, self._schedule, rank, self._name, self._port, daemon=True)
        process.start()
        theirs.close()
        self._processes[rank], self._pipes[rank] = process, mine
        threading.Thread(target=self._wake, args=[process.pid], daemon=True).start()

    def start(self, rank: int) -> str:
        """What a rank says that is started again."""
        self._fork(rank)
        said = self._heard(rank)
        if said != "ready":
            self._pipes.pop(rank, None)
        return str(said)

    def _wake(self, pid: int) -> None:
        """Have a stopped process go on, when the others' patience is over."""
        while not self._over.wait(0.02):
            with suppress(OSError):
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                    time.sleep(PAUSE_S)
                    os.kill(pid, signal.SIGCONT)

    def begin(self, ranks: Sequence[int], what: str, *args: Any) -> None:
        """Ask without waiting for the answers."""
        for rank in ranks:
            with suppress(OSError):
                self._pipes[rank].send((what, *args))
                self._asked.append(rank)

    def collect(self) -> dict[int, Any]:
        """The answers of all that were asked and have not died."""
        asked, self._asked = self._asked, []
        self._latest = {rank: self._heard(rank) for rank in asked}
        self.outcome.said.append(self._latest)
        return self._latest

    def ask(self, ranks: Sequence[int], what: str, *args: Any) -> dict[int, Any]:
        self.begin([rank for rank in ranks if rank in self._pipes], what, *args)
        return self.collect()

    def ask_all(self, what: str, *args: Any) -> dict[int, Any]:
        said = self.ask(self.alive, what, *args)
        return {rank: one for rank, one in said.items() if one is not None}

    def _heard(self, rank: int) -> Any:
        try:
            if self._pipes[rank].poll(HANG_S):
                return self._pipes[rank].recv()
            self.outcome.faults.append(f"rank {rank} hangs")
        except (EOFError, OSError):
            pass  # it was killed
        del self._pipes[rank]
        return None

    def check(self, generations: set[int]) -> None:
        """Each of the last forwards read one of these generations, or was a named error."""
        allowed = {f"generation {number}" for number in generations}
        for rank, seen in self._latest.items():
            for one in seen or ():
                if one not in allowed and not one.startswith("TransportError: rank "):
                    self.outcome.faults.append(f"rank {rank}: {one}")

    def check_one_generation(self) -> None:
        """No two ranks serve different generations at one time."""
        served = {one for seen in self._latest.values() for one in seen or () if "gener" in one}
        if len(served) > 1:
            self.outcome.faults.append(f"served at one time: {sorted(served)}")


__all__ = ["PATIENCE_S", "Outcome", "play"]
