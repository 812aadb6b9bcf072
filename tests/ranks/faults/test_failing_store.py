"""Every call of the world's store fails, once and for good: a named error, never a hang.

One rank of two, in this process; what the other has written is there already.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch.distributed as dist

from elsewhere import Clock
from vllm_layershard.errors import MismatchError
from vllm_layershard.runtime.ranks import handshake as module
from vllm_layershard.runtime.ranks.handshake import Handshake

WORLD = (0, 1)
PATIENCE_S = 60.0
ALONE = {"layers": ["o_proj"]}
LOST = "rank 0, which holds the world's key-value store, died or hangs"


class FailingStore:
    """A store of this process whose `nth` call fails; `for_good`: so do all after it."""

    def __init__(self, nth: int = 0, *, for_good: bool = False) -> None:
        self._store = dist.HashStore()
        self._nth, self._for_good = nth, for_good
        self._calls = 0
        self.struck = False
        self.says("configuration", ALONE)
        self._store.set("room/values/1", json.dumps("of 1"))

    def says(self, subject: str, value: Any) -> None:
        """Rank 1 has shown this."""
        ranks = json.dumps(WORLD)
        self._store.set(f"{subject}/whole/1", json.dumps({ranks: value}))
        self._store.set(f"{subject}/digests/1", json.dumps({ranks: module._digest(value)}))

    def plain(self) -> dist.Store:
        return self._store

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._store, name)

        def counted(*args: Any) -> Any:
            self._calls += 1
            if self._calls == self._nth or (self._for_good and self.struck):
                self.struck = True
                raise RuntimeError("Connection reset by peer")
            return call(*args)

        return counted


@pytest.fixture(autouse=True)
def hours(monkeypatch) -> None:
    monkeypatch.setattr(module, "time", Clock())


def meet(store: FailingStore, rank: int = 0) -> list[Any]:
    handshake = Handshake(store, rank, 2, PATIENCE_S)
    handshake.compare("configuration", {WORLD: ALONE})
    return handshake.gather("room", "of 0")


def faults(for_good: bool) -> Iterator[FailingStore]:
    nth = 0
    while True:
        nth += 1
        store = FailingStore(nth, for_good=for_good)
        yield store
        if not store.struck:
            assert nth > 5
            return


@pytest.mark.parametrize("for_good", [False, True])
def test_a_store_that_fails_is_named(for_good):
    for store in faults(for_good):
        try:
            assert meet(store) == ["of 0", "of 1"]
            said = ""
        except MismatchError as error:
            said = str(error)
        assert (LOST in said and "Connection reset" in said) == store.struck


@pytest.mark.parametrize("for_good", [False, True])
def test_who_leaves_is_not_kept_by_a_store_that_fails(for_good):
    for store in faults(for_good):
        Handshake(store, 0, 2, PATIENCE_S).leave(ValueError("the end"))
        if not store.struck:
            assert store.plain().get("end") == b"rank 0 ended: ValueError: the end"


@pytest.mark.parametrize("rank", WORLD)
def test_a_rank_that_is_missing_is_named_in_the_clocks_time(rank):
    store = FailingStore()
    with pytest.raises(MismatchError, match="rank 1 of the world's 2 did not come to compare the "):
        Handshake(store, 0, 2, PATIENCE_S).compare("plan", {WORLD: "a plan"})
    with pytest.raises(MismatchError, match="rank 1 of the world's 2 did not come"):
        Handshake(store, rank, 2, PATIENCE_S).gather("late", 0)  # who comes later is told the same


def test_a_difference_is_described():
    store = FailingStore()
    store.says("plan", "another plan")
    with pytest.raises(MismatchError, match="rank 1 against rank 0: plan: 'a plan' != 'another pl"):
        Handshake(store, 0, 2, PATIENCE_S).compare("plan", {WORLD: "a plan"})


def test_who_comes_when_another_has_ended_is_told_why():
    store = FailingStore()
    store.plain().set("end", "rank 1 ended: it cannot")
    with pytest.raises(MismatchError, match="rank 1 ended: it cannot"):
        meet(store)
    with pytest.raises(MismatchError, match="rank 1 ended: it cannot"):
        Handshake(store, 0, 2, PATIENCE_S).gather("never shown by 1", 0)


def test_the_holder_stays_until_all_know():
    store = FailingStore()
    store.plain().set("known/1", "")
    Handshake(store, 0, 2, PATIENCE_S).leave(ValueError("the end"))
    assert module.time.monotonic() == 0.0


def test_each_model_has_a_part_of_the_worlds_store():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        first, second = (module.shared_store() for _ in range(2))
        first.set("end", "")
        assert not second.check(["end"])
        module.handshake(second).compare("configuration", {(0,): ALONE})
        assert module.handshake(second)._patience_s == module.PATIENCE_S
    finally:
        dist.destroy_process_group()
