"""What exports of device memory do without a device: handles, watched peers, refusals."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import pytest
import torch

from vllm_layershard.errors import NodeError, TransportError
from vllm_layershard.runtime.peer_memory.ipc import Shared
from vllm_layershard.runtime.peer_memory.npu import NpuExports
from vllm_layershard.runtime.peer_memory.processes import Peers, address
from vllm_layershard.runtime.ranks.group import RankGroup


@pytest.fixture
def other():
    """A process that lives until it is killed."""
    process = multiprocessing.get_context("spawn").Process(target=signal.pause)
    process.start()
    yield process
    process.kill()
    process.join()


def test_what_torch_says_of_a_storage_comes_back_from_json_on_another_device():
    said = Shared(3, b"\x02c\x00\xff", 4096, 512, b"/torch_1_2", 7, b"\x00" * 64, True)
    assert Shared.read(json.loads(json.dumps(said.plain())), device=1) == said._replace(device=1)


def test_torch_takes_what_it_said_in_the_order_that_is_kept():
    """`_new_shared_cuda` takes eight values: torch's own caller says in which order."""
    from inspect import getsource

    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    taken = getsource(rebuild_cuda_tensor).partition("_new_shared_cuda(")[2].partition(")")[0]
    assert [name.strip() for name in taken.split(",") if name.strip()] == [
        "storage_device",
        "storage_handle",
        "storage_size_bytes",
        "storage_offset_bytes",
        "ref_counter_handle",
        "ref_counter_offset",
        "event_handle",
        "event_sync_required",
    ]


def test_a_peer_that_is_killed_is_named_and_one_that_runs_is_not(other):
    peers = Peers(rank=0)
    peers.watch(1, address())  # this process: it runs
    peers.watch(2, address() | {"pid": other.pid})
    peers.check()
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with pytest.raises(TransportError, match="rank 0: rank 2 has ended"):
        peers.check()


def test_a_peer_that_has_ended_before_it_is_watched_is_named(other):
    gone = address() | {"pid": other.pid}
    other.kill()
    other.join()
    with pytest.raises(TransportError, match="rank 0: rank 1 has ended"):
        Peers(rank=0).watch(1, gone)


@pytest.mark.parametrize(
    ("key", "named"), [("host", "another node"), ("namespace", "another container")]
)
def test_a_peer_elsewhere_is_refused_with_the_alternative(key, named):
    elsewhere = address() | {key: "other", "hostname": "far"}
    with pytest.raises(NodeError, match=rf"rank 1 on far, .*{named}.*'broadcast'"):
        Peers(rank=0).watch(1, elsewhere)


@pytest.mark.skipif(hasattr(torch.UntypedStorage, "_share_npu_"), reason="torch_npu is here")
def test_without_acl_ipc_an_npu_is_refused_with_the_alternative():
    group = RankGroup((4, 5), 1, data=None, control=None)  # type: ignore[arg-type]
    with pytest.raises(NodeError, match=r"rank 5: this torch_npu cannot share .*'broadcast'"):
        NpuExports(group, torch.device("privateuseone", 0))
