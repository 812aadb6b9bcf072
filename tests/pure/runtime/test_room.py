"""Whether there is room is judged once, from what all ranks have told, and alike on all of them."""

from __future__ import annotations

import json

import pytest

from vllm_layershard.errors import NodeError
from vllm_layershard.plan import SharedNeed
from vllm_layershard.runtime.peer_memory.limits import Limit
from vllm_layershard.runtime.peer_memory.room import Room, require_room

SHM = Limit("/dev/shm", "node /dev/shm", 100, "enlarge it (docker run --shm-size)")


def cgroup(name: str, free: int) -> Limit:
    return Limit(f"/sys/fs/cgroup/{name}/memory.max", name, free, "raise it (docker run --memory)")


def room(
    rank: int, nbytes: int, *limits: Limit, pieces: int = 1, descriptors: int | None = 1000,
    stored: bool = False,
) -> Room:  # fmt: skip
    return Room(rank, SharedNeed(nbytes, pieces), limits, descriptors, stored)


def said(*rooms: Room) -> str | None:
    """The verdict, which is the same whoever judges and in whatever order."""
    verdicts = set()
    for order in (rooms, rooms[::-1]):
        told = [Room.told(json.loads(json.dumps(one))) for one in order]
        assert tuple(told) == order
        try:
            require_room(told)
            verdicts.add(None)
        except NodeError as error:
            verdicts.add(str(error).replace("ranks 1, 0", "ranks 0, 1"))
    (verdict,) = verdicts
    return verdict


def test_what_ranks_under_one_limit_need_is_added_up():
    assert said(room(0, 50, SHM), room(1, 50, SHM)) is None
    assert said(room(0, 50, SHM), room(1, 51, SHM)) == (
        "/dev/shm: 101 bytes are needed for weights that other ranks read (ranks 0, 1), and 100 "
        "are free; enlarge it (docker run --shm-size), shard fewer layers, or use transport "
        "'broadcast' where the ranks run in lockstep"
    )


def test_each_rank_is_bound_by_the_cgroups_that_it_is_in():
    mine, theirs = cgroup("a", 60), cgroup("b", 60)
    assert said(room(0, 50, SHM, mine), room(1, 50, SHM, theirs)) is None
    assert said(room(0, 50, SHM, mine), room(1, 50, SHM, mine)).startswith(
        "/sys/fs/cgroup/a/memory.max: 100 bytes are needed for weights that other ranks read "
        "(ranks 0, 1), and 60 are free; raise it (docker run --memory)"
    )
    assert "(rank 1), and 40 are free" in said(room(0, 50, mine), room(1, 50, cgroup("b", 40)))


def test_of_one_limit_the_least_that_any_rank_found_counts():
    assert "and 90 are free" in said(room(0, 50, SHM), room(1, 50, SHM._replace(free=90)))


def test_a_rank_that_has_stored_its_weights_needs_no_more_of_what_is_free():
    assert said(room(0, 80, SHM, stored=True), room(1, 80, SHM)) is None
    assert said(room(0, 80, SHM._replace(free=10), stored=True), room(1, 80, SHM)) is None


def test_a_rank_that_stores_nothing_is_not_in_the_way():
    assert said(room(0, 0, SHM._replace(free=0), pieces=0, descriptors=3), room(1, 9, SHM)) is None


def test_files_are_counted_on_each_rank_by_itself():
    assert said(room(0, 1, pieces=36, descriptors=100), room(1, 1, pieces=30)) is None
    assert said(room(0, 1, pieces=36), room(1, 1, pieces=37, descriptors=100)) == (
        "rank 1: 101 more file descriptors are needed, one for each layer of which it stores "
        "weights that other ranks read, and the limit of open files leaves 100; raise it (ulimit "
        "-n), or shard fewer layers"
    )
    assert said(room(0, 1, pieces=10**6, descriptors=None)) is None


def test_where_no_limit_is_known_nothing_is_refused():
    assert said(room(0, 10**18)) is None


@pytest.mark.parametrize("free", [0, 10**6])
def test_what_a_rank_finds_is_of_its_node(tmp_path, free):
    assert Room.found(2, SharedNeed(free, 1), tmp_path) == Room(
        2, SharedNeed(free, 1), (), None, False
    )
