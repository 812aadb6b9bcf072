"""Real ranks over gloo: run a function in K processes and bring back what each returns."""

from __future__ import annotations

import datetime
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from forked import CONTEXT, forked

TIMEOUT_S = 60
LIMIT_S = 1200.0
"""Against ranks that hang: what none of them has said by then is not waited for."""


def _one_rank(rank: int, size: int, store: str, result: Connection, work: Any, args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=TIMEOUT_S),
    )
    try:
        result.send((work(rank, *args), None))
    except BaseException as error:
        result.send((None, (type(error).__name__, str(error), traceback.format_exc())))
    finally:
        dist.barrier()
        dist.destroy_process_group()


class RankError(Exception):
    """A rank raised; `kind` and `text` are its exception's. Or it crashed, or hung."""

    def __init__(self, rank: int, kind: str, text: str, trace: str) -> None:
        super().__init__(f"rank {rank}: {kind}: {text}\n{trace}")
        self.kind = kind
        self.text = text


def run_ranks(
    size: int, work: Callable[..., Any], tmp_path: Path, *args: Any, limit_s: float = LIMIT_S
) -> list[Any]:
    """The results of `work(rank, *args)` by rank; `work` must be importable.

    Raises:
        RankError: of a rank that crashed or said nothing in `limit_s`; else of the lowest that
            raised.
    """
    store = tmp_path / "store"
    store.unlink(missing_ok=True)
    pipes, processes = [], []
    for rank in range(size):
        receiving, sending = CONTEXT.Pipe(duplex=False)
        processes.append(forked(_one_rank, rank, size, str(store), sending, work, args))
        processes[-1].start()
        sending.close()  # the rank has the only other end: it ends with the rank
        pipes.append(receiving)
    results = _received(pipes, time.monotonic() + limit_s)
    lost = [_lost(rank, processes[rank], rank in results) for rank in range(size)]
    for error in filter(None, lost):
        raise error
    for rank in range(size):
        if (told := results[rank][1]) is not None:
            raise RankError(rank, *told)
    return [results[rank][0] for rank in range(size)]


def _received(pipes: list[Connection], until: float) -> dict[int, tuple[Any, Any]]:
    """What the ranks have said, by rank. One whose pipe ends without a word is left out."""
    results: dict[int, tuple[Any, Any]] = {}
    waiting = {pipe: rank for rank, pipe in enumerate(pipes)}
    while waiting and (ready := wait(list(waiting), max(0.0, until - time.monotonic()))):
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting.pop(pipe)
            try:
                results[rank] = pipe.recv()
            except EOFError:
                pass
            finally:
                pipe.close()
    return results


def _lost(rank: int, process: BaseProcess, has_said: bool) -> RankError | None:
    """What to raise of a rank that said nothing; None of one that did. Its process is ended."""
    process.join(TIMEOUT_S if has_said else 1)
    hangs = process.is_alive()
    process.kill()
    process.join()
    if has_said:
        return None
    if hangs:
        return RankError(rank, "hung", "it said nothing in time, and was killed", "")
    return RankError(rank, "crashed", f"exit code {process.exitcode}", "")
