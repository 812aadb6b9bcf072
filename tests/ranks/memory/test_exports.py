"""Exports in POSIX shared memory: what a peer sees, after a restart too, and what it maps never."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from forged import forged
from vllm_layershard.errors import MismatchError, NodeError, TransportError
from vllm_layershard.runtime import shared_memory
from vllm_layershard.runtime.peer_memory import file_name_of
from vllm_layershard.runtime.peer_memory.ipc import IpcExports, Shared
from vllm_layershard.runtime.peer_memory.posix import PosixExports
from vllm_layershard.runtime.piece import Piece
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.window import Window

FORK = multiprocessing.get_context("fork")
HANG_S = 60
LAYER = 3
SIZES = {LAYER: (8,)}
FORGERIES = 10_000


class Peer:
    """A process that sees layer 3 of rank 0, and says what it reads there. Gone with the test."""

    def __init__(self) -> None:
        self._pipe, theirs = FORK.Pipe()
        self._process = FORK.Process(target=self._see, args=(theirs,), daemon=True)
        self._process.start()

    def _see(self, pipe: Any) -> None:
        exports = PosixExports(f"peer-{os.getpid()}", 1)
        parts: Any = None
        while True:
            what, *args = pipe.recv()
            try:
                if what == "open":
                    parts, *_ = exports.open(0, *args)[LAYER]
                elif what == "reopen":
                    exports.reopen(0, *args)
                pipe.send((parts.view(torch.float).tolist(), parts.data_ptr()))
            except (MismatchError, NodeError, TransportError) as error:
                pipe.send(f"{type(error).__name__}: {error}")

    def says(self, *what: Any) -> Any:
        self._pipe.send(what)
        assert self._pipe.poll(HANG_S)
        return self._pipe.recv()

    def reads(self, *what: Any) -> list[float]:
        return self.says(*what)[0]


@pytest.fixture
def peer():
    peer = Peer()
    yield peer
    peer._process.kill()
    peer._process.join()
    shared_memory.sweep()


def exported(values: list[float]) -> tuple[PosixExports, torch.Tensor]:
    exports = PosixExports(f"exports-{os.getpid()}", 0)
    (kept,) = exports.store(LAYER, [torch.tensor(values)])
    return exports, kept


def told(exports: PosixExports) -> Any:
    """Its handles, as they come through JSON."""
    return json.loads(json.dumps(exports.handles()))


@pytest.mark.parametrize(
    "series", ["o_proj@0", "shared experts/up", "", "ü", "x" * 300, "\0", "../../x", "\ud800"]
)
def test_a_series_of_any_name_has_pieces_that_a_peer_finds(series, peer):
    exports = PosixExports(f"exports-{os.getpid()}-{file_name_of(series)}", 0)
    (kept,) = exports.store(LAYER, [torch.tensor([1.0, 2.0])])
    seen = peer.reads("open", told(exports), SIZES)
    assert seen == kept.tolist()
    assert file_name_of(series) != file_name_of(f"{series}!")


def test_a_peer_sees_what_is_written_at_the_same_address(peer):
    exports, kept = exported([1.0, 2.0])
    (before, address) = peer.says("open", told(exports), SIZES)
    kept.copy_(torch.tensor([3.0, 4.0]))
    assert (before, peer.says("look")) == ([1.0, 2.0], ([3.0, 4.0], address))


def test_what_is_settled_has_no_name_and_a_peer_still_sees_it(peer):
    exports, kept = exported([1.0, 2.0])
    peer.reads("open", told(exports), SIZES)
    exports.settle()
    assert not shared_memory.names(f"exports-{os.getpid()}-rank0")
    kept.fill_(5.0)
    assert peer.reads("look") == [5.0, 5.0]


def test_a_peer_sees_a_rank_that_was_started_again_where_it_saw_the_former_one(peer):
    def first(pipe: Any) -> None:
        exports = PosixExports("again", 0)
        exports.store(LAYER, [torch.tensor([1.0, 2.0])])
        pipe.send(told(exports))
        pipe.recv()

    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=first, args=(theirs,), daemon=True)
    process.start()
    seen = peer.says("open", ours.recv(), SIZES)
    process.kill()
    process.join()
    assert peer.says("look") == seen, "mapped pages stay"
    again = PosixExports("again", 0)
    (kept,) = again.store(LAYER, [torch.tensor([1.0, 2.0])])
    handles = told(again)
    kept.fill_(7.0)
    assert peer.says("look") == seen, "it sees the former one's"
    assert peer.says("reopen", handles) == ([7.0, 7.0], seen[1])


def test_tensors_lie_in_a_piece_as_they_did(peer):
    weight = torch.arange(6.0).reshape(2, 3).t()
    exports = PosixExports(f"exports-{os.getpid()}", 0)
    kept, scale = exports.store(LAYER, [weight, torch.tensor([9.0])])
    assert (kept.tolist(), kept.stride()) == (weight.tolist(), weight.stride())
    assert scale.data_ptr() - kept.data_ptr() == 64, "each begins in a cache line"
    assert peer.reads("open", told(exports), {LAYER: (24, 4)}) == list(range(6)), (
        "in the order of memory"
    )


def test_memory_of_another_host_is_refused_with_the_alternative(peer):
    exports, _ = exported([1.0, 2.0])
    handles = told(exports) | {"host": "another boot", "hostname": "node7"}
    said = peer.says("open", handles, SIZES)
    assert said.startswith("NodeError: rank 1 on ")
    assert "of rank 0 on node7: pulls reach within one node" in said
    assert "'broadcast'" in said


def test_other_weights_than_the_plan_has_are_not_mapped(peer):
    exports, _ = exported([1.0, 2.0])
    said = peer.says("open", told(exports), {LAYER: (16,)})
    assert said.startswith("MismatchError: rank 0 handed over other weights than the plan gives it")


def test_another_piece_under_the_name_is_not_mapped(peer):
    exports, _ = exported([1.0, 2.0])
    handles = told(exports)
    name = f"{shared_memory.PREFIX}exports-{os.getpid()}-rank0-{LAYER}"
    planted = Piece.of(f"{name}.planted", b"12345678")
    os.rename(shared_memory.path_of(f"{name}.planted"), shared_memory.path_of(name))
    said = peer.says("open", handles, SIZES)
    planted.remove()
    shared_memory.path_of(name).unlink()
    assert said.startswith("TransportError: rank 1: rank 0 no longer has the weights")


def outcomes(handles: Any, seed: int) -> Counter:
    """What becomes of forged handles, in a process that has mapped nothing before."""
    draw, found = random.Random(seed), Counter()
    shown: list[int] = []
    show = Window.show

    def seen(self: Window, fd: int, *, writable: bool) -> None:
        assert not writable
        shown.append(os.fstat(fd).st_ino)
        show(self, fd, writable=writable)

    Window.show = seen  # type: ignore[method-assign]
    for number in range(FORGERIES):
        document = forged(handles, draw)
        shown.clear()
        try:
            PosixExports(f"peer-{number}", 1).open(0, document, SIZES)
        except (MismatchError, NodeError, TransportError) as error:
            found[type(error).__name__] += 1
            assert not shown
        else:
            found["mapped"] += 1
            assert shown == [handles["stored"][str(LAYER)]["file"]], document
            assert document["name"] == handles["name"]
    return found


def test_of_forged_handles_nothing_is_mapped_but_what_was_published():
    exports, _ = exported([1.0, 2.0])
    ours, theirs = FORK.Pipe()
    handles = told(exports)
    process = FORK.Process(target=lambda: theirs.send(outcomes(handles, 1)), daemon=True)
    process.start()
    theirs.close()
    found = ours.recv()
    assert sum(found.values()) == FORGERIES
    assert found["MismatchError"] > FORGERIES / 4
    assert found["mapped"] < FORGERIES / 2, "those whose change does not matter"


class Recorded(IpcExports):
    """A device that notes what it is asked to map."""

    mapped: list[Shared]

    def _share(self, storage: torch.UntypedStorage) -> Shared:
        return Shared(0, b"handle", 8, 0, b"counter", 0, b"event", True)

    def _map(self, shared: Shared) -> torch.UntypedStorage:
        if shared.nbytes > 1 << 20:
            raise RuntimeError("the driver knows of no such memory")
        self.mapped.append(shared)
        return torch.UntypedStorage(shared.nbytes)

    def _identity(self) -> str:
        return "device"

    def _check_reach(self, rank: int, identity: str) -> None:
        if identity != "device":
            raise NodeError("out of reach")


def recorded(rank: int) -> Recorded:
    """Of a rank on a stand-in for a device, which only counts."""
    device = SimpleNamespace(current_device=lambda: 0, synchronize=lambda _: None)
    group = RankGroup((0, 1), rank, data=None, control=None)  # type: ignore[arg-type]
    exports = Recorded(group, torch.device("cpu", 0), device)  # type: ignore[arg-type]
    exports.mapped = []
    return exports


def test_of_forged_handles_of_a_device_nothing_is_mapped_but_what_fits_the_plan():
    owner = recorded(0)
    owner.store(LAYER, [torch.tensor([1.0, 2.0])])
    handles = json.loads(json.dumps(owner.handles()))
    draw, found = random.Random(1), Counter()
    for _ in range(FORGERIES):
        reader = recorded(1)
        document = forged(handles, draw)
        try:
            reader.open(0, document, SIZES)
        except (MismatchError, NodeError, TransportError) as error:
            found[type(error).__name__] += 1
            assert not reader.mapped
        else:
            found["mapped"] += 1
            assert all(shared.nbytes >= 8 for shared in reader.mapped)
    assert sum(found.values()) == FORGERIES
    assert found["MismatchError"] > FORGERIES / 4
