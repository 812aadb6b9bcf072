"""Pull: each rank copies what it needs from its peers' memory, by itself; no lockstep.

Note [Two events a slot]
A copy must not overwrite a slot that is still being read, nor be read before it is complete. It
runs on the side stream, which first waits for the compute stream: the boundary that starts it
comes after the slot's last reader (consumed). The compute then waits for the copy (copied). See
Device.enqueue and Device.join.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, TypeVar

import torch

from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.peer_memory import Exports, Parts, Sizes
from vllm_layershard.runtime.ranks.agreement import on_all_ranks
from vllm_layershard.runtime.ranks.group import Group
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.tensors import byte_line, cut
from vllm_layershard.runtime.transport.base import Ticket, Transport

_T = TypeVar("_T")

Copy = tuple[torch.Tensor, torch.Tensor]
"""Target and source, as many bytes of each: [nbytes] of uint8."""


class Pull(Transport):
    """Copies out of what the peers export, in slices of `slice_bytes` (0: unsliced).

    Of a striped layer every rank has a part: the ranks are asked in turn, each rank beginning with
    the one after itself, so that no two of them ask the same one at the same time.
    """

    name = "pull"
    device: Device

    def __init__(self, group: Group, device: Device, exports: Exports, slice_bytes: int) -> None:
        self._group = group
        self.device = device
        self._exports = exports
        self._slice_bytes = slice_bytes
        self._stored: dict[int, tuple[torch.Tensor, ...]] = {}
        self._sources: tuple[tuple[int, ...], ...] = ()
        """The other group ranks that store something of a position, by position."""
        self._copies: dict[int, Callable[[], None]] = {}
        """What fills its slot, by position."""
        self._ends: tuple[Any, ...] = ()
        """By slot: see Device.enqueue. What a slot received before is joined by then."""

    def store(self, position: int, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        self._stored[position] = self._exports.store(position, tensors)
        return self._stored[position]

    def open(self, plan: SeriesPlan, slots: SlotPool) -> None:
        self._ends = tuple(self.device.event() for _ in slots.tensors)
        me, size = self._group.group_rank, self._group.size
        positions = range(len(plan.series))
        self._sources = tuple(tuple(_sources(plan, position, me, size)) for position in positions)
        handles = self._group.gather(self._told(self._exports.handles))
        theirs = self._told(partial(self._opened, handles, plan, slots))
        for position, slot in enumerate(plan.schedule.slot):
            if not plan.is_resident(position, me):
                copies = self._copies_of(plan, position, slots.tensors[slot], theirs)
                self._copies[position] = partial(_copy, tuple(copies))
        if not self._group.rejoins:
            self._group.gather(None)
            self._exports.settle()

    def _told(self, attempt: Callable[[], _T]) -> _T:
        """`attempt` on every rank, each of which learns if it fails on another.

        Ranks that are not in lockstep learn it from the message that a rank leaves as it ends.
        """
        return on_all_ranks(attempt, self._group) if self._group.lockstep else attempt()

    def _opened(
        self, handles: Sequence[Any], plan: SeriesPlan, slots: SlotPool
    ) -> list[Mapping[int, Parts]]:
        """What every rank stores, by group rank."""
        mine = {p: tuple(map(byte_line, tensors)) for p, tensors in self._stored.items()}
        whole = tuple(byte_line(tensor).numel() for tensor in slots.tensors[0])
        return [
            mine
            if peer == self._group.group_rank
            else self._exports.open(rank, handles[peer], _stored_by(peer, plan, whole))
            for peer, rank in enumerate(self._group.ranks)
        ]

    def begin(self) -> None:
        self.check_peers()

    def check_peers(self) -> None:
        self._exports.check_peers()

    def start(self, position: int, slot: int) -> Ticket | None:
        copy = self._copies.get(position)
        if copy is None:
            return None
        return Ticket(self.device, self.device.enqueue(copy, self._ends[slot]))

    def whereabouts(self) -> Any:
        return self._exports.whereabouts() if self._group.rejoins else None

    def meet(self, whereabouts: Sequence[Any]) -> None:
        for rank, where in zip(self._group.ranks, whereabouts, strict=True):
            if where is not None and rank != self._group.ranks[self._group.group_rank]:
                self._exports.reopen(rank, where)

    def reload(self, position: int, tensors: Sequence[torch.Tensor]) -> None:
        for stored, new in zip(self._stored.get(position, ()), tensors, strict=True):
            stored.copy_(new)

    def _copies_of(
        self,
        plan: SeriesPlan,
        position: int,
        slot: Sequence[torch.Tensor],
        theirs: Sequence[Mapping[int, Parts]],
    ) -> Iterator[Copy]:
        """All that fills a slot with a position: a slice of each source in turn, its own last."""
        own = (self._group.group_rank,) if plan.is_striped else ()
        queues = []
        for peer in (*self._sources[position], *own):
            targets = list(map(byte_line, slot))
            if plan.is_striped:
                # What a rank stores of a layer is one line, in the slot it may cross tensors.
                targets = cut(slot, *plan.stripes[peer])
            queues.append(self._sliced(targets, theirs[peer].get(position, ())))
        for turn in zip_longest(*queues):
            yield from (copy for copy in turn if copy is not None)

    def _sliced(self, targets: Sequence[torch.Tensor], parts: Parts) -> Iterator[Copy]:
        """Copies from the parts, laid end to end, into the targets, laid end to end."""
        start = 0
        for target in targets:
            (source,) = cut(parts, start, start + target.numel())
            most = self._slice_bytes or target.numel()
            yield from zip(target.split(most), source.split(most), strict=True)
            start += target.numel()
        assert start == sum(part.numel() for part in parts), "a slot is filled with all there is"


def _stored_by(peer: int, plan: SeriesPlan, whole: Sizes) -> dict[int, Sizes]:
    """The bytes of what a group rank stores, by position, where a whole layer has these."""
    positions = range(len(plan.series))
    if not plan.is_striped:
        return {p: whole for p in positions if plan.is_resident(p, peer)}
    start, end = plan.stripes[peer]
    return {p: (end - start,) for p in positions if start < end}


def _sources(plan: SeriesPlan, position: int, me: int, size: int) -> Iterator[int]:
    """The other group ranks that store something of a position, from the next one on."""
    for peer in ((me + turn) % size for turn in range(1, size)):
        if plan.is_striped:
            start, end = plan.stripes[peer]
            if start < end:
                yield peer
        elif plan.is_resident(position, peer):
            yield peer


def _copy(copies: tuple[Copy, ...]) -> None:
    for target, source in copies:
        target.copy_(source, non_blocking=True)
