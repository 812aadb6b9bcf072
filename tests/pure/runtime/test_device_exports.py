"""What exports of device memory do without a device: handles, watched peers, refusals."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from machine import NEEDS_ROOT
from vllm_layershard.errors import NodeError, TransportError
from vllm_layershard.runtime.peer_memory.ipc import IpcExports, Shared
from vllm_layershard.runtime.peer_memory.npu import NpuExports
from vllm_layershard.runtime.peer_memory.processes import Address, Peers, _started, address
from vllm_layershard.runtime.ranks.group import RankGroup

HANG_S = 120


@pytest.fixture
def other():
    """A process that lives until it is killed."""
    process = multiprocessing.get_context("spawn").Process(target=signal.pause)
    process.start()
    yield process
    process.kill()
    process.join()


def address_of(pid: int) -> Address:
    return address() | {"pid": pid, "started": _started(pid)}


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


class Asked(NpuExports):
    """Of a stand-in for a device: notes in which order it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        device = SimpleNamespace(synchronize=lambda device: self.asked.append("synchronize"))
        group = RankGroup((0, 1), 0, data=None, control=None)  # type: ignore[arg-type]
        IpcExports.__init__(self, group, torch.device("cpu", 0), device)  # type: ignore[arg-type]

    def _identity(self) -> str:
        return "device"

    def _share(self, storage: torch.UntypedStorage) -> Shared:
        self.asked.append("share")
        return Shared(0, b"handle", 8, 0, b"counter", 0, b"event", True)


def test_memory_is_shared_once_the_device_has_written_it():
    """A peer may read it as soon as it has the handle."""
    exports = Asked()
    exports.store(0, [torch.tensor([1.0, 2.0])])
    exports.handles()
    assert exports.asked == ["synchronize", "share"]


def test_a_part_of_a_larger_storage_is_shared_without_the_rest():
    """Else a weight that is a view would keep all that it is a view of, on its owner."""
    exports = Asked()
    fused, whole = torch.arange(12.0), torch.arange(3.0)
    stored = exports.store(0, [fused[4:8], whole])
    assert [tensor.tolist() for tensor in stored] == [[4, 5, 6, 7], [0, 1, 2]]
    assert [tensor.untyped_storage().nbytes() for tensor in stored] == [16, 12]
    assert stored[0].data_ptr() != fused[4:8].data_ptr()
    assert stored[1].data_ptr() == whole.data_ptr(), "it is shared where it is"
    line, _ = exports._stored[0]
    assert line.data_ptr() == stored[0].data_ptr(), "what is served is what is shared"


def test_a_peer_that_is_killed_is_named_and_one_that_runs_is_not(other):
    peers = Peers(rank=0)
    peers.watch(1, address())  # this process: it runs
    peers.watch(2, address_of(other.pid))
    peers.check()
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with pytest.raises(TransportError, match="rank 0: rank 2 has ended"):
        peers.check()


def test_a_peer_that_has_ended_before_it_is_watched_is_named(other):
    gone = address_of(other.pid)
    other.kill()
    other.join()
    with pytest.raises(TransportError, match="rank 0: rank 1 has ended"):
        Peers(rank=0).watch(1, gone)


RECYCLED = """
import os, subprocess
from pathlib import Path
from types import SimpleNamespace
from vllm_layershard.errors import TransportError
from vllm_layershard.runtime.peer_memory.processes import Peers, _started, address

def asleep():
    return subprocess.Popen(["sleep", "600"])

peer = asleep()
where = address() | {"pid": peer.pid, "started": _started(peer.pid)}
peers = Peers(rank=0)
peers.watch(1, where)
peer.kill()
peer.wait()
while os.sysconf("SC_CLK_TCK") * float(Path("/proc/uptime").read_text().split()[0]) < (
    where["started"] + 2
):
    pass  # the clock of starts ticks
Path("/proc/sys/kernel/ns_last_pid").write_text(str(peer.pid - 1))
another = asleep()
assert another.pid == peer.pid, "the number is not recycled"
before = os.listdir("/proc/self/fd")
try:
    peers.watch(1, where)
except TransportError as error:
    print(error)
assert os.listdir("/proc/self/fd") == before
another.kill()
"""
OWN_NUMBERS = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


@NEEDS_ROOT
def test_a_process_that_got_a_peers_number_is_not_taken_for_it():
    done = subprocess.run(
        [*OWN_NUMBERS, sys.executable, "-c", RECYCLED],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rank 0: rank 1 has ended, and the weights that it stored")


def test_the_start_is_found_behind_any_name_of_a_process(other, tmp_path):
    odd = tmp_path / "a) (b 7"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "600"]) as sleeper:
        assert f"({odd.name}) " in Path(f"/proc/{sleeper.pid}/stat").read_text()
        assert _started(other.pid) <= _started(sleeper.pid)
        Peers(rank=0).watch(1, address_of(sleeper.pid))
        sleeper.kill()


@pytest.mark.parametrize(
    ("key", "named"), [("host", "another node"), ("namespace", "another container")]
)
def test_a_peer_elsewhere_is_refused_with_the_alternative(key, named):
    elsewhere = address() | {key: "other", "hostname": "far"}
    with pytest.raises(NodeError, match=rf"rank 1 on far, .*{named}.*'broadcast'"):
        Peers(rank=0).watch(1, elsewhere)


def test_without_acl_ipc_an_npu_is_refused_with_the_alternative(monkeypatch):
    monkeypatch.delattr(torch.UntypedStorage, "_share_npu_", raising=False)  # as before ACL IPC
    group = RankGroup((4, 5), 1, data=None, control=None)  # type: ignore[arg-type]
    with pytest.raises(NodeError, match=r"rank 5: this torch_npu cannot share .*'broadcast'"):
        NpuExports(group, torch.device("privateuseone", 0))


@pytest.mark.parametrize("refusal", [errno.ENOSYS, errno.EPERM, errno.EMFILE])
def test_a_system_without_handles_on_processes_is_refused_with_the_alternative(
    refusal, monkeypatch
):
    """An old kernel, a sandbox, no descriptor left."""

    def refused(pid: int) -> int:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(os, "pidfd_open", refused)
    with pytest.raises(NodeError, match=f"pidfd_open says {os.strerror(refusal)}.*'broadcast'"):
        Peers(rank=0).watch(1, address())
