"""Replicas meet in the node's shared memory: late, again, or not at all."""

from __future__ import annotations

import os
import sys
import time
from secrets import token_hex
from typing import Any

import pytest

from forked import CONTEXT, forked
from gloo.meetings import DEADLINE_S, Guest
from machine import NEEDS_ROOT
from vllm_layershard.errors import MismatchError, TransportError
from vllm_layershard.runtime import shared_memory
from vllm_layershard.runtime.piece import Piece
from vllm_layershard.runtime.ranks import rendezvous as module
from vllm_layershard.runtime.ranks.agreement import agree_on
from vllm_layershard.runtime.ranks.rendezvous import Rendezvous
from vllm_layershard.runtime.ranks.replicas import ReplicaGroup
from vllm_layershard.runtime.shared_memory import PREFIX

SHORT_S = 1.0
RANKS = (0, 1)


@pytest.fixture
def name() -> str:
    return f"test{token_hex(4)}"


def gathered(name: str, rank: int, values: list[Any], wait_s: float = 0.0) -> list[list[Any]]:
    """What the group gathers when this rank gives these values, one after another."""
    time.sleep(wait_s)
    group = ReplicaGroup(Rendezvous(name, rank), RANKS)
    gathered.kept = group  # for as long as the process lives
    return [group.gather(value) for value in values]


def test_every_rank_sees_every_value_however_late_one_comes(name):
    with (
        Guest(gathered, name, 0, ["a", {"b": [1]}]) as zero,
        Guest(gathered, name, 1, ["c", None], 1.0) as one,
    ):
        assert zero.says() == one.says() == [["a", "c"], [{"b": [1]}, None]]


def test_a_rank_that_restarts_finds_what_the_others_showed_then(name):
    with Guest(gathered, name, 0, ["a", "b"]) as zero:
        with Guest(gathered, name, 1, ["c", "d"]) as one:
            assert zero.says() == one.says() == [["a", "c"], ["b", "d"]]
        with Guest(gathered, name, 1, ["e", "f"]) as again:
            assert again.says() == [["a", "e"], ["b", "f"]]


def shown(name: str, rank: int, subject: str, document: Any) -> str:
    shown.kept = Rendezvous(name, rank)
    shown.kept.publish(subject, document)
    return "shown"


def test_what_the_dead_have_left_is_not_there_and_the_next_start_removes_it(name, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", SHORT_S)
    with Guest(shown, name, 1, "weights", "mine") as one:
        assert one.says() == "shown"
        zero = Rendezvous(name, 0)
        assert zero.read("weights", [1]) == ["mine"]
        one.kill()
        assert shared_memory.names(name)
        with pytest.raises(TransportError, match=r"rank 0: rank 1 did not come .* \(weights\)"):
            zero.read("weights", [1])
    Rendezvous(name, 0).close()
    assert not shared_memory.names(name)


def started(name: str, rank: int, document: Any, wait_s: float = SHORT_S) -> tuple[int, str]:
    """This process's number, and what its peer shows it; or what the start comes to."""
    module.HANDOVER_S = wait_s
    try:
        started.kept = Rendezvous(name, rank, "node7:29550")
        started.kept.publish("start", document)
        return os.getpid(), started.kept.read("start", [1 - rank])[0]
    except MismatchError as error:
        return os.getpid(), f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("twice", [(0,), (1,), (0, 1)])
def test_a_rank_that_is_started_twice_is_told_so_and_the_first_one_is_left_alone(name, twice):
    def files() -> dict[str, int]:
        return {each: shared_memory.path_of(each).stat().st_ino for each in names_of(name)}

    with Guest(started, name, 0, "a") as zero, Guest(started, name, 1, "b") as one:
        (pid_of_zero, seen_by_zero), (pid_of_one, seen_by_one) = zero.says(), one.says()
        assert (seen_by_zero, seen_by_one) == ("b", "a")
        before = files()
        for rank in twice:
            with Guest(started, name, rank, "second") as second:
                pid, said = second.says()
            first = (pid_of_zero, pid_of_one)[rank]
            assert said == (
                f"MismatchError: rank {rank} of the deployment that meets at node7:29550 runs "
                f"already on this node, as process {first}; process {pid} was started as the same "
                "rank, and ends: start each rank once, end what is left of an earlier start, or "
                "give another deployment a port of its own"
            )
            assert files() == before
        reader = Rendezvous(name, 2)
        assert reader.read("start", [0, 1]) == ["a", "b"]
        reader.close()


def names_of(name: str) -> list[str]:
    return [path.name for path in shared_memory.DIRECTORY.glob(f"{PREFIX}{name}*")]


def test_of_ranks_that_are_started_twice_at_once_one_of_each_goes_on(name):
    guests = [Guest(started, name, rank, rank) for rank in (0, 1, 0, 1)]
    said = [guest.says()[1] for guest in guests]
    for rank in (0, 1):
        mine = [text for number, text in enumerate(said) if number % 2 == rank]
        assert sorted(isinstance(text, int) for text in mine) == [False, True]
        assert 1 - rank in mine
    for guest in guests:
        guest.kill()
    shared_memory.sweep()


class Looks:
    """The clock of a process that says when it begins to wait."""

    def __init__(self, told: Any) -> None:
        self._told = told

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        self._told.set()
        time.sleep(seconds)


def restarted(name: str, waits: Any) -> list[Any]:
    module.time = Looks(waits)
    rendezvous = restarted.kept = Rendezvous(name, 1)
    rendezvous.publish("start", "again")
    return rendezvous.read("start", [0])


def ending(name: str) -> str:
    """A rank that has said why it ends, and is still at it."""
    rendezvous = ending.kept = Rendezvous(name, 1)
    rendezvous.publish("start", "former")
    rendezvous.leave(ValueError("no such layer"))
    return "said so"


def test_a_rank_that_restarts_waits_for_its_former_self_to_end(name, monkeypatch):
    waits = CONTEXT.Event()
    with Guest(shown, name, 0, "start", "zero") as zero, Guest(ending, name) as former:
        assert (zero.says(), former.says()) == ("shown", "said so")
        with Guest(restarted, name, waits) as again:
            assert waits.wait(DEADLINE_S)
            former.kill()
            assert again.says() == ["zero"]
            reader = Rendezvous(name, 2)
            assert reader.read("start", [0, 1]) == ["zero", "again"]
            monkeypatch.setattr(module, "PATIENCE_S", SHORT_S)
            with pytest.raises(TransportError, match="rank 1 did not come"):
                reader.read("layers", [1])
            reader.close()


class Clock:
    """Stands still but for those who sleep."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_all_who_are_missing_are_named_with_the_reasons_that_there_may_be(name, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "PATIENCE_S", SHORT_S)
    zero = Rendezvous(name, 0)
    zero.publish("weights", 1)
    with pytest.raises(TransportError) as error:
        zero.read("weights", [0, 1, 2])
    assert SHORT_S < clock.now_s <= SHORT_S + 2 * module._LOOK_S
    zero.close()
    assert str(error.value) == (
        "rank 0: rank 1 and 2 did not come to compare notes on this node (weights) within 1 s: it "
        "died, hangs or was not launched, or it is on another node, where its memory cannot be "
        "read; see its log, and keep replicas that share weights on one node"
    )


def leaving(name: str, rank: int) -> str:
    leaving.kept = Rendezvous(name, rank)
    leaving.kept.leave(ValueError("no such layer"))
    return "left"


def test_a_rank_that_ends_says_why_and_nobody_waits_for_it_also_when_it_is_gone(name):
    zero = Rendezvous(name, 0)
    with Guest(leaving, name, 1) as one:
        assert one.says() == "left"
        with pytest.raises(TransportError, match="rank 1 ended: ValueError: no such layer"):
            zero.read("weights", [1])
    with pytest.raises(TransportError, match="rank 1 ended: ValueError: no such layer"):
        zero.read("weights", [1])
    Rendezvous(name, 0).close()
    assert not shared_memory.names(name)


def ended(name: str, rank: int) -> None:
    Rendezvous(name, rank).leave(ValueError("no such layer"))
    sys.exit()


def test_an_orderly_end_does_not_take_its_reason_along(name):
    zero = Rendezvous(name, 0)
    process = forked(ended, name, 1)
    process.start()
    process.join()
    with pytest.raises(TransportError, match="rank 1 ended: ValueError: no such layer"):
        zero.read("weights", [1])
    shared_memory.sweep()


def as_nobody(name: str, rank: int) -> str:
    os.setresuid(65534, 65534, 65534)
    return shown(name, rank, "weights", "forged")


@NEEDS_ROOT
def test_what_another_user_shows_is_not_read(name, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", SHORT_S)
    with Guest(as_nobody, name, 1) as forger:
        assert forger.says() == "shown"
        with pytest.raises(TransportError, match="rank 1 did not come"):
            Rendezvous(name, 0).read("weights", [1])
    for left in names_of(name):
        shared_memory.path_of(left).unlink()  # which only its owner or root may


def test_what_is_no_json_is_named(name):
    with Guest(shown_raw, name, 1) as one:
        assert one.says() == "shown"
        zero = Rendezvous(name, 0)
        with pytest.raises(MismatchError, match="what rank 1 sent is no JSON"):
            zero.read("weights", [1])
        with pytest.raises(MismatchError, match="what rank 1 sent is no JSON"):
            zero.look("weights", 1)
        zero.close()


def shown_raw(name: str, rank: int) -> str:
    shown_raw.kept = Rendezvous(name, rank)
    shown_raw.kept._pieces["weights"] = Piece.of(f"{PREFIX}{name}-weights-{rank}", b"{'no': JSON}")
    return "shown"


def agreed(name: str, rank: int, document: Any) -> str:
    agreed.kept = ReplicaGroup(Rendezvous(name, rank), RANKS)
    agree_on("configuration", document, agreed.kept)
    return "agreed"


def test_a_difference_is_one_error_on_every_rank(name):
    with (
        Guest(agreed, name, 0, {"layers": ["o_proj"]}) as zero,
        Guest(agreed, name, 1, {"layers": ["q_proj"]}) as one,
    ):
        said = one.says()
        assert said == zero.says()
        assert said.startswith(
            "MismatchError: the ranks of a layer sharding group have different configurations"
        )
        assert "rank 1 against rank 0: configuration.layers[0]: 'o_proj' != 'q_proj'" in said


def test_groups_of_one_deployment_keep_their_values_apart(name):
    zero = Rendezvous(name, 0)
    groups = [ReplicaGroup(zero, (0,)), ReplicaGroup(zero, (0,), "start")]
    assert groups[0].name != groups[1].name
    assert [group.gather(i) for i, group in enumerate(groups)] == [[0], [1]]
    zero.close()


def amended(name: str, rank: int, values: list[Any], last: Any) -> list[Any]:
    found = gathered(name, rank, values)
    gathered.kept.amend(last)
    return found[-1]


def test_a_rank_that_restarts_finds_what_the_others_amended(name):
    with Guest(amended, name, 0, ["a", "to come"], "done") as zero:
        with Guest(gathered, name, 1, ["b", "to come"]) as one:
            assert zero.says() == ["to come", "to come"]
            assert one.says()[0] == ["a", "b"]
        with Guest(gathered, name, 1, ["b", "again"]) as again:
            assert again.says() == [["a", "b"], ["done", "again"]]
