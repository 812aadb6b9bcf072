"""Who dies, stalls or is missing is named in bounded time: as docs/serving.md states the bounds.

A rank really dies or stops. Where a bound is to be shown, it is a second, and every other timeout
an hour: so what names the rank is that bound, or that nobody waits at all.
"""

from __future__ import annotations

import datetime
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from forked import forked
from gloo.stack import WIDTH, Stack, shard
from vllm_layershard.errors import ConfigError, TransportError
from vllm_layershard.runtime.ranks import handshake, rendezvous
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.transport import broadcast

HANG_S = 120
HOUR_S = 3600
LAYERS = 3
FORWARDS = 4


def test_the_bounds_are_those_that_the_page_states():
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    assert handshake.PATIENCE_S == 180
    assert broadcast.STALL_S == 300
    rows = re.findall(r"^\| (a rank .*?) \| (.*?) \|", page, re.M)
    stated = dict(rows)
    assert stated["a rank that does not come to be compared"].startswith("180 s")
    assert "300 s" in stated["a rank that stalls while a layer moves"]
    assert stated["a rank that dies while a layer moves"].startswith("5 s")


def one_rank(rank: int, place: str, strike: tuple[int, int], fatal: int, timeout_s: float) -> None:
    """Write what came of it to a file; nothing if this rank died or stopped."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(f"{place}/store", 2),
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=timeout_s),
    )
    stack = Stack(LAYERS, seed=7)
    try:
        forwards(rank, stack, strike, fatal)
        came = "right"
    except TransportError as error:
        came = str(error)
    Path(place, f"{rank}.draft").write_text(came)
    os.rename(Path(place, f"{rank}.draft"), Path(place, str(rank)))
    os._exit(0)


@torch.inference_mode()
def forwards(rank: int, stack: Stack, strike: tuple[int, int], fatal: int) -> None:
    from vllm_layershard.manual import reach_layer, wait_layer

    series = shard(stack, prefetch_step=0)
    broadcast.STALL_S = 1.0
    x = torch.zeros(1, WIDTH)
    for forward in range(FORWARDS):
        for layer, linear in enumerate(stack.linears):
            if rank == 1 and (forward, layer) == strike:
                os.kill(os.getpid(), fatal)
            reach_layer(linear)
            wait_layer(linear)
            x = linear(x)
    assert series.counters.forwards == FORWARDS


def outcome(place: Path, *args: Any) -> str:
    """What rank 0 met: if it does not end, the test hangs no longer than HANG_S."""
    ranks = [forked(one_rank, rank, str(place), *args) for rank in (0, 1)]
    for process in ranks:
        process.start()
    ranks[0].join(HANG_S)
    for process in ranks:
        process.kill()
        process.join()
    told = place / "0"
    return told.read_text() if told.exists() else "it hangs"


LOST = r"rank 0: layer 1 of series 'linear', owned by rank 1, could not be moved: a rank of the gr"


@pytest.mark.parametrize("forward", [0, 3])
def test_a_rank_that_dies_is_named_without_waiting_for_any_timeout(tmp_path, forward):
    assert re.match(LOST, outcome(tmp_path, (forward, 1), signal.SIGKILL, HOUR_S))


def test_a_rank_that_stalls_is_named_within_the_bound_where_its_timeout_is_longer(tmp_path):
    assert re.match(LOST, outcome(tmp_path, (3, 1), signal.SIGSTOP, HOUR_S))


def longer_and_shorter(rank: int, place: str) -> None:
    """Whether a timeout that is shorter than the bound stays."""
    bounds = []
    for nth, timeout_s in enumerate((0.5, HOUR_S)):
        store = dist.FileStore(f"{place}/{nth}", 1)
        timeout = datetime.timedelta(seconds=timeout_s)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timeout)
        group = RankGroup((0,), 0, dist.group.WORLD, dist.group.WORLD)
        group.bound_movements(broadcast.STALL_S)
        backend = group.data._get_backend(torch.device("cpu"))
        bounds.append(backend.options._timeout.total_seconds())
        dist.destroy_process_group()
    Path(place, str(rank)).write_text(repr(bounds))


def test_a_timeout_that_is_shorter_stays(tmp_path):
    process = forked(longer_and_shorter, 0, str(tmp_path))
    process.start()
    process.join(HANG_S)
    assert (tmp_path / "0").read_text() == "[0.5, 300.0]"


@pytest.mark.parametrize(("text", "seconds"), [(None, 600), ("7", 7), (" 1200 ", 1200)])
def test_a_replica_is_waited_for_as_long_as_vllm_waits_for_an_engine(text, seconds):
    environment = {} if text is None else {"VLLM_ENGINE_READY_TIMEOUT_S": text}
    assert rendezvous.patience_of(environment) == seconds


@pytest.mark.parametrize("text", ["600s", "nan", "inf", "", "0", "-5", "1.5"])
def test_a_wait_that_is_no_whole_number_of_seconds_is_refused_by_name(text):
    with pytest.raises(ConfigError, match=f"VLLM_ENGINE_READY_TIMEOUT_S = '{text}': give a whole"):
        rendezvous.patience_of({"VLLM_ENGINE_READY_TIMEOUT_S": text})
