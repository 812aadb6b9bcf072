"""Struck ranks: gloo processes of which a fault strikes one, and what came of each, in words."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

LONG_S = 60.0
HANG_S = 120.0

Meet = Callable[[str], None]
"""Returns once every rank has come to what it names. No rank needs another to leave."""
Act = Callable[[Meet], str]
"""What a rank does, and what it says of it."""


@dataclass(frozen=True, slots=True)
class Run:
    """`act_of(rank)` is what a rank does; a group of `size` waits for `timeout_s` at most.

    An error of `named` is told by name and message, any other one begins with UNNAMED. With
    `together` no rank leaves before all have ended: each sees the fault itself.
    """

    size: int
    timeout_s: float
    act_of: Callable[[int], Act]
    named: tuple[type[Exception], ...]
    together: bool = False


def outcome(run: Run, place: Path) -> list[str]:
    """What came of every rank: "nothing" of one that died, "hung" of one that had to be killed."""
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_one_rank, args=(rank, run, place)) for rank in range(run.size)
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
    files = [place / str(rank) for rank in range(run.size)]
    return [
        "hung" if rank in hung else file.read_text() if file.exists() else "nothing"
        for rank, file in enumerate(files)
    ]


def _one_rank(rank: int, run: Run, place: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{place}/store", run.size)
    everyone, limit = range(run.size), datetime.timedelta(seconds=LONG_S)

    def meet(subject: str) -> None:
        store.set(f"{subject}/{rank}", "")
        store.wait([f"{subject}/{other}" for other in everyone], limit)

    timeout = datetime.timedelta(seconds=run.timeout_s)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=run.size, timeout=timeout)
    meet("connected")  # nobody dies before
    try:
        came = run.act_of(rank)(meet)
    except run.named as error:
        came = f"{type(error).__name__}: {error}"
    except BaseException as error:
        came = f"UNNAMED {type(error).__name__}: {error}"
    Path(place, str(rank)).write_text(came)
    if run.together:
        meet("ended")
    os._exit(0)
