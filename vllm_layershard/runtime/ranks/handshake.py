"""Handshake: before any collective, the ranks of the world compare what they were started with.

A collective hangs where one rank does not take part, until a timeout of many minutes that names
nobody. So the ranks first write down in the world's own key-value store what must be alike, read
what the others wrote, and wait for them no longer than a bound. Whoever ends tells the others why.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.distributed_c10d import _get_default_store

from vllm_layershard.config import KEY
from vllm_layershard.errors import MismatchError
from vllm_layershard.runtime.ranks.agreement import differing
from vllm_layershard.runtime.ranks.bounded import bounded
from vllm_layershard.runtime.ranks.messages import decoded

PATIENCE_S = 180.0
"""How long a rank waits for the others at one comparison. All of them have just formed the world,
but the slowest may still import the model's code from a cold network disk: minutes, not seconds.
A longer wait would only delay the error."""

_LOOK_S = 0.1
"""How often a waiting rank looks whether the others have written, or ended. It polls: the store's
own wait cannot be told of an end, and prints a warning at each of its timeouts."""

_FAREWELL_S = 5.0
"""How long the store's holder stays for the others to read why, before it takes the store along."""

Ranks = tuple[int, ...]


class Handshake:
    """Comparisons between all ranks of a world, each under a name of its own.

    `store` is shared by exactly these ranks, and by nothing else. No call is a collective: a rank
    that does not take part is named, not waited for without end. `key` is what all of them should
    have been given.
    """

    def __init__(
        self, store: Store, rank: int, world_size: int, patience_s: float, key: str = KEY
    ) -> None:
        self._store = store
        self._rank = rank
        self.world = tuple(range(world_size))
        self._patience_s = patience_s
        self._key = key

    def compare(self, subject: str, alike: Mapping[Ranks, Any]) -> None:
        """Return if, for each key, all ranks that it lists hold the same plain data for it.

        A rank writes an entry for each of the `alike` groups that it belongs to.

        Raises:
            MismatchError: on every rank that came: who differs and how, who is missing, or why
                another rank has ended.
        """
        self._bounded(lambda: self._compare(subject, alike))

    def gather(self, subject: str, value: Any) -> list[Any]:
        """Every rank's value for `subject`, plain data, by rank.

        Once all have come it is the same on all of them, also if one ends over it.

        Raises:
            MismatchError: who is missing, or why another rank has ended.
        """
        found: list[Any] = []
        self._bounded(lambda: found.extend(self._gathered(subject, value)))
        return found

    def compare_by(
        self, subject: str, value: Any, fault_in: Callable[[list[Any]], str | None]
    ) -> None:
        """Return if `fault_in` finds none in what the ranks hold, plain data, by rank.

        It must find the same on every rank.

        Raises:
            MismatchError: as `compare`, or with what was found.
        """
        self._bounded(lambda: self._compare_by(subject, value, fault_in))

    def leave(self, error: Exception) -> None:
        """Tell the others that this rank ends, and why, so that they wait for it no longer."""
        said = f"rank {self._rank} ended: {type(error).__name__}: {error}"
        with suppress(MismatchError):  # the store is gone: the error at hand says more
            self._bounded(lambda: self._ended(said))

    def _bounded(self, work: Callable[[], object]) -> None:
        """Do the work in a thread: a store whose holder is stopped never answers, not even late."""
        try:
            bounded(work, self._patience_s + 2 * _FAREWELL_S)
        except RuntimeError as error:
            raise MismatchError(
                f"rank {self._rank}: the ranks could not be compared: rank 0, which holds the "
                "world's key-value store, died or hangs; see its log, then restart the server "
                f"({str(error).strip().splitlines()[0]})"
            ) from error

    def _compare(self, subject: str, alike: Mapping[Ranks, Any]) -> None:
        written = {json.dumps(ranks): _plain(value) for ranks, value in alike.items()}
        digests = {ranks: _digest(value) for ranks, value in written.items()}
        self._store.set(f"{subject}/whole/{self._rank}", json.dumps(written))
        told = self._gathered(subject, digests, "digests")
        if self._has("end"):  # all have come, but this rank too late for another
            raise self._ended("")
        for group in sorted({group for mine in told for group in mine}):
            first, *others = json.loads(group)
            strange = [rank for rank in others if told[rank].get(group) != told[first].get(group)]
            if strange:
                raise self._ended(self._describe(subject, group, first, strange))

    def _gathered(self, subject: str, value: Any, kind: str = "values") -> list[Any]:
        self._store.set(f"{subject}/{kind}/{self._rank}", json.dumps(value))
        self._await(subject, f"{subject}/{kind}")
        return [decoded(r, self._store.get(f"{subject}/{kind}/{r}")) for r in self.world]

    def _compare_by(
        self, subject: str, value: Any, fault_in: Callable[[list[Any]], str | None]
    ) -> None:
        fault = fault_in(self._gathered(subject, value))
        if fault is not None:
            raise self._ended(fault)

    def _describe(self, subject: str, group: str, first: int, strange: list[int]) -> str:
        wholes = {r: decoded(r, self._store.get(f"{subject}/whole/{r}")) for r in (first, *strange)}
        faults = [
            f"rank {r} against rank {first}: "
            + differing(wholes[first].get(group), wholes[r].get(group), subject)
            for r in strange
        ]
        return (
            "the ranks of layer sharding were not started alike; give every rank the same "
            f"configuration, model and versions. {' | '.join(faults)}"
        )

    def _await(self, subject: str, prefix: str) -> None:
        """Wait until every rank has written under `prefix`, or one has ended."""
        deadline = time.monotonic() + self._patience_s
        while missing := self._missing(prefix):
            if self._has("end"):
                raise self._ended("")
            if time.monotonic() > deadline:
                who = " and ".join(map(str, missing))
                raise self._ended(
                    f"rank {who} of the world's {len(self.world)} did not come to compare the "
                    f"{subject} within {self._patience_s:g} s: it runs without the key {self._key} "
                    "or without the plugin, or it died or hangs; see its log, and give every node "
                    "the same --additional-config and the same vllm-layershard"
                )
            time.sleep(_LOOK_S)

    def _missing(self, prefix: str) -> list[int]:
        """The ranks that have not written under `prefix`."""
        keys = {rank: f"{prefix}/{rank}" for rank in self.world}
        if self._store.check(list(keys.values())):
            return []
        return [rank for rank, key in keys.items() if not self._has(key)]

    def _has(self, key: str) -> bool:
        return self._store.check([key])

    def _ended(self, said: str) -> MismatchError:
        """End for this reason, or for the one that another rank has given before.

        The store's holder stays until all know it, because it takes the store along.
        """
        self._store.compare_set("end", "", said)
        why = self._store.get("end").decode()
        self._store.set(f"known/{self._rank}", "")
        deadline = time.monotonic() + _FAREWELL_S
        while self._rank == 0 and self._missing("known") and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        return MismatchError(why)


def handshake(store: Store, key: str = KEY) -> Handshake:
    """A handshake over what `shared_store` has made, among ranks that were given this key."""
    return Handshake(store, dist.get_rank(), dist.get_world_size(), PATIENCE_S, key)


def shared_store() -> Store:
    """A part of the world's own store for one model that is built, the same on every rank."""
    global _built
    _built += 1
    return PrefixStore(f"layershard/{_built}", _get_default_store())


_built = 0
"""How many models this process has sharded: as many as every other rank of the world."""


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
