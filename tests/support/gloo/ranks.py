"""Real ranks over gloo: run a function in K processes and bring back what each returns."""

from __future__ import annotations

import datetime
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from forked import CONTEXT, forked

TIMEOUT_S = 60


def _one_rank(rank: int, size: int, store: str, results: Any, work: Any, args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=TIMEOUT_S),
    )
    try:
        results.put((rank, work(rank, *args), None))
    except BaseException as error:
        results.put((rank, None, (type(error).__name__, str(error), traceback.format_exc())))
    finally:
        dist.barrier()
        dist.destroy_process_group()


class RankError(Exception):
    """A rank raised; `kind` and `text` are its exception's."""

    def __init__(self, rank: int, kind: str, text: str, trace: str) -> None:
        super().__init__(f"rank {rank}: {kind}: {text}\n{trace}")
        self.kind = kind
        self.text = text


def run_ranks(size: int, work: Callable[..., Any], tmp_path: Path, *args: Any) -> list[Any]:
    """The results of `work(rank, *args)` by rank; `work` must be importable.

    Raises:
        RankError: of the lowest rank that raised.
    """
    results = CONTEXT.SimpleQueue()
    store = tmp_path / "store"
    store.unlink(missing_ok=True)
    processes = [
        forked(_one_rank, rank, size, str(store), results, work, args) for rank in range(size)
    ]
    for process in processes:
        process.start()
    found = sorted((results.get() for _ in processes), key=lambda result: result[0])
    for process in processes:
        process.join(TIMEOUT_S)
    for rank, _, error in found:
        if error is not None:
            raise RankError(rank, *error)
    return [value for _, value, _ in found]
