"""ShardedSeries: obeys a SeriesPlan on one rank. All index arithmetic stands in the plan.

A series is LOADING until every position has been adopted and `finish` was called, then READY.
In a forward, `reach(p)` stands at the boundary of position p's decoder layer and launches what the
plan says; `wait(p)` stands before the linear reads its weight. See the note [A self-contained
forward] in plan/schedule.py.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn

from vllm_layershard.config import Placement, TransportName
from vllm_layershard.errors import TransportError
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.formats import check_formats
from vllm_layershard.runtime.peer_memory import exports_of
from vllm_layershard.runtime.ranks.first_arrivals import FirstArrivals
from vllm_layershard.runtime.ranks.group import Group, RankGroup
from vllm_layershard.runtime.ranks.small_tensors import SmallTensors
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.stats import Counters
from vllm_layershard.runtime.tensors import flat, held, materialise
from vllm_layershard.runtime.transport import Broadcast, Pull, Ticket, Transport
from vllm_layershard.runtime.weights import Weights


class State(enum.Enum):
    """LOADING: layers are being adopted. READY: forwards may run."""

    LOADING = enum.auto()
    READY = enum.auto()


class ShardedSeries:
    """One series on one rank.

    `holding` is what this rank keeps of it. After `finish` no address changes any more. `verify`:
    see FirstArrivals.
    """

    def __init__(
        self,
        plan: SeriesPlan,
        group: Group,
        device: Device,
        *,
        movement: TransportName = "broadcast",
        slice_bytes: int = 0,
        verify: bool = False,
    ) -> None:
        self.plan = plan
        self.group = group
        self.device = device
        self.state = State.LOADING
        self.counters = Counters()
        self.movement = movement
        self.on_forward_end: Callable[[], None] = lambda: None
        self._adopted: set[int] = set()
        self._moves = plan.schedule.num_slots > 0
        self._last = len(plan.series) - 1
        self._tickets: list[Ticket | None] = [None] * plan.schedule.num_slots
        self._first_arrivals = FirstArrivals(group, plan) if verify and self._moves else None
        self._small_tensors = SmallTensors(group, plan)
        if self._moves:
            self._transport = _transport(plan, group, device, movement, slice_bytes)
        transport = self._transport if self._moves else None
        self.holding = Weights(plan, group, transport, device.torch_device)

    @property
    def name(self) -> str:
        """The series' name, as configured."""
        return self.plan.series.name

    @property
    def placement(self) -> Placement:
        """Where its layers are kept."""
        if not self._moves:
            return "replicated"
        return "striped" if self.plan.is_striped else "round_robin"

    @property
    def resident(self) -> Mapping[int, Mapping[str, torch.Tensor]]:
        """The tensors that this rank owns, by position and attribute name."""
        return self.holding.resident

    @property
    def slots(self) -> SlotPool:
        """Where the others' layers arrive."""
        return self.holding.slots

    def owns(self, position: int) -> bool:
        """Whether this rank keeps the position's weight itself."""
        return self.holding.owns(position)

    def loads(self, position: int) -> bool:
        """Whether this rank reads the position's weight from the checkpoint.

        Ranks that cannot send each other what they have loaded read all of which they keep a part.
        """
        if not self._moves or (self.plan.is_striped and not self.group.lockstep):
            return True
        return self.plan.loader[position] == self.group.group_rank

    def receive(self, position: int, module: nn.Module, *, leave: tuple[str, ...] = ()) -> None:
        """While loading: fill the module's parameters, but for `leave`, as its loader has them.

        Collective in a group in lockstep: the loader's parameters hold the loaded weights, those of
        the other ranks may be on meta. Elsewhere what is on meta becomes zeros, for the quant
        method to process.
        """
        if not self._moves:
            return
        if not self.loads(position):
            materialise(module, self.device.torch_device, leave=leave)
        if isinstance(self.group, RankGroup):
            self._broadcast(self.group, position, module, leave)

    def _broadcast(
        self, group: RankGroup, position: int, module: nn.Module, leave: tuple[str, ...]
    ) -> None:
        sent = {
            name: param
            for name, param in sorted(held(module).items())
            if isinstance(param, nn.Parameter) and name not in leave
        }
        check_formats(self.device, self._layer(position), sent)
        for param in sent.values():
            try:
                group.broadcast(flat(param), self.plan.loader[position])
            except RuntimeError as error:
                raise self._lost(position, error) from error

    def adopt(self, position: int, module: nn.Module, names: tuple[str, ...]) -> None:
        """Take over the module's large tensors `names`, in their final form: see Weights.take.

        Raises:
            HostError: one is in a format of the device's own, or the transport has no memory for
                them.
        """
        assert self.state is State.LOADING, f"series {self.name!r} is already loaded"
        assert position not in self._adopted, f"series {self.name!r}: {position} adopted twice"
        self._check_formats(position, module, names)
        if self._first_arrivals is not None and self.loads(position):
            self._first_arrivals.note(position, tuple(held(module)[name] for name in names))
        self._small_tensors.note(position, module, names)
        self.holding.take(position, module, names)
        self._adopted.add(position)

    def finish(self, plan: SeriesPlan) -> None:
        """End loading under the final plan. All ranks of the group do so.

        `plan` may know bytes better than the one given at birth, but decides the same.

        Raises:
            MismatchError: what the ranks keep beside the large tensors differs.
            HostError, TransportError: a rank's memory cannot be reached.
        """
        assert len(self._adopted) == len(plan.series), f"series {self.name!r}: layers are missing"
        decided = (self.plan.owner, self.plan.loader, self.plan.schedule)
        assert (plan.owner, plan.loader, plan.schedule) == decided, (
            f"series {self.name!r}: the plan changed while loading"
        )
        if plan.is_striped:
            assert plan.stripes[self.group.group_rank] == self.holding.stripe, (
                f"series {self.name!r}: it was cut otherwise than the plan says"
            )
        self.plan = plan
        self._occupant = self.slots.occupant
        if self._moves:
            self._small_tensors.compare()
            self._transport.open(plan, self.slots)
            if self._first_arrivals is not None:
                self._first_arrivals.gather()
        self.state = State.READY

    def reload(self, position: int, module: nn.Module) -> None:
        """Between two forwards: serve what the module's tensors hold now. No address changes.

        Not collective; the next forward moves the new bytes. See Weights.reload.

        Raises:
            HostError: a new tensor is in a format of the device's own.
        """
        assert self.state is State.READY, f"series {self.name!r} is still loading"
        self._check_formats(position, module, self.holding.names)
        self.holding.reload(position, module)
        if self._first_arrivals is not None:
            self._first_arrivals.forget(position)

    def reach(self, position: int) -> None:
        """At the boundary of `position`: launch what the plan launches there.

        Raises:
            TransportError: a rank of the group is gone, or was not given the weights of a reload.
        """
        assert self.state is State.READY, f"series {self.name!r} is not loaded"
        if position == 0:
            self.counters.forwards += 1
            if self._moves:
                self._transport.begin()
        for ahead in self.plan.schedule.launches[position]:
            slot = self.plan.schedule.slot[ahead]
            unread = self._tickets[slot]
            moving = self._occupant[slot]
            try:
                if unread is not None:
                    # A forward that skips a linear (vllm-ascend's dummy batches) leaves its ticket:
                    # two movements into one slot must not overlap.
                    unread.wait()
                moving = ahead
                self._tickets[slot] = self._transport.start(ahead, slot)
            except RuntimeError as error:
                assert moving is not None, "a ticket is of a movement"
                raise self._lost(moving, error) from error
            self._occupant[slot] = ahead
            self.counters.launches += 1

    def wait(self, position: int) -> None:
        """Before the linear of `position` reads its weight: wait until it is there.

        Raises:
            TransportError: it did not arrive within the process group's timeout.
            MismatchError: with `verify`, it arrived for the first time and with other bytes.
        """
        if self._moves:
            slot = self.plan.schedule.slot[position]
            assert self._occupant[slot] == position, (
                f"series {self.name!r}: position {position} is waited for but was never reached"
            )
            ticket = self._tickets[slot]
            if ticket is not None:
                started = time.perf_counter_ns()
                try:
                    ticket.wait()
                except RuntimeError as error:
                    raise self._lost(position, error) from error
                self.counters.waited_us += (time.perf_counter_ns() - started) / 1000
                self._tickets[slot] = None
                if self._first_arrivals is not None and not self.owns(position):
                    self._first_arrivals.check(position, self.slots.tensors[slot])
        self.counters.waits += 1
        if position == self._last:
            self.on_forward_end()

    def _check_formats(self, position: int, module: nn.Module, names: tuple[str, ...]) -> None:
        if self._moves:
            tensors = held(module)
            large = {name: tensors[name] for name in names}
            check_formats(self.device, self._layer(position), large)

    def _layer(self, position: int) -> str:
        return f"layer {self.plan.series.layer_ids[position]} of series {self.name!r}"

    def _lost(self, position: int, error: RuntimeError) -> TransportError:
        owner = self.group.ranks[self.plan.loader[position]]
        whose = "kept in stripes" if self.plan.is_striped else f"owned by rank {owner}"
        return self.group.lost(f"{self._layer(position)}, {whose}, could not be moved", error)

    def weights(self, position: int) -> Mapping[str, torch.Tensor]:
        """The tensors that `position`'s linear reads on this rank, by attribute name."""
        return self.holding.weights(position)

    def resident_bytes(self) -> int:
        """Bytes of the storages that this rank keeps for good, as really allocated."""
        return self.holding.resident_bytes()


def _transport(
    plan: SeriesPlan, group: Group, device: Device, movement: TransportName, slice_bytes: int
) -> Transport:
    if movement == "pull":
        return Pull(plan, group, device, exports_of(device, group, plan.series.name), slice_bytes)
    assert isinstance(group, RankGroup), "config: only ranks in lockstep broadcast"
    return Broadcast(group, device, plan.owner)
