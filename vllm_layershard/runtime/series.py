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

from vllm_layershard.errors import TransportError
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.group import RankGroup
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.stats import Counters
from vllm_layershard.runtime.tensors import flat, held, materialise, point, storage_bytes
from vllm_layershard.runtime.transport import Broadcast, Ticket
from vllm_layershard.runtime.verify import FirstArrivals


class State(enum.Enum):
    """LOADING: layers are being adopted. READY: forwards may run."""

    LOADING = enum.auto()
    READY = enum.auto()


class ShardedSeries:
    """One series on one rank.

    `resident[p]` are the tensors this rank owns, by attribute name, for the positions it owns;
    `slots` holds the others. After `finish` no address changes any more.
    """

    def __init__(self, plan: SeriesPlan, group: RankGroup, device: Device) -> None:
        self.plan = plan
        self.group = group
        self.device = device
        self.state = State.LOADING
        self.counters = Counters()
        self.resident: dict[int, dict[str, torch.Tensor]] = {}
        self.slots = SlotPool(0, (), device.torch_device)
        self.on_forward_end: Callable[[], None] = lambda: None
        self._names: tuple[str, ...] = ()
        self._adopted: set[int] = set()
        self._moves = plan.schedule.num_slots > 0
        self._tickets: list[Ticket | None] = [None] * plan.schedule.num_slots
        self._first_arrivals: FirstArrivals | None = None

    @property
    def name(self) -> str:
        """The series' name, as configured."""
        return self.plan.series.name

    def owns(self, position: int) -> bool:
        """Whether this rank keeps the position's weight itself."""
        return self.plan.is_resident(position, self.group.group_rank)

    def receive(self, position: int, module: nn.Module, *, leave: tuple[str, ...] = ()) -> None:
        """While loading: fill the module's parameters, but for `leave`, from the owner's.

        Collective. The owner's parameters hold the loaded weights; the other ranks' may be on meta.
        """
        if not self._moves:
            return
        if not self.owns(position):
            materialise(module, self.device.torch_device, leave=leave)
        for name, param in sorted(held(module).items()):
            if isinstance(param, nn.Parameter) and name not in leave:
                try:
                    self.group.broadcast(flat(param), self.plan.owner[position])
                except RuntimeError as error:
                    raise self._lost(position, error) from error

    def adopt(self, position: int, module: nn.Module, names: tuple[str, ...]) -> None:
        """Take over the module's large tensors `names`, in their final form.

        The owner keeps them where they are; on the other ranks they become aliases of the slot
        that the plan gives the position, and what they were before is freed.
        """
        assert self.state is State.LOADING, f"series {self.name!r} is already loaded"
        assert position not in self._adopted, f"series {self.name!r}: {position} adopted twice"
        tensors = {name: held(module)[name] for name in names}
        if not self._adopted:
            self._names = names
            if self._moves:
                self.slots = SlotPool(
                    self.plan.schedule.num_slots,
                    tuple(tensors.values()),
                    self.device.torch_device,
                )
        assert names == self._names, f"series {self.name!r}: {names} after {self._names}"
        if self.owns(position):
            self.resident[position] = {name: t.detach() for name, t in tensors.items()}
        else:
            slot = self.slots.tensors[self.plan.schedule.slot[position]]
            for (name, tensor), target in zip(tensors.items(), slot, strict=True):
                alike = (tensor.shape, tensor.stride(), tensor.dtype) == (
                    target.shape,
                    target.stride(),
                    target.dtype,
                )
                assert alike, f"series {self.name!r}: layouts differ within the series"
                point(module, name, target)
        self._adopted.add(position)

    def finish(self, plan: SeriesPlan, *, verify: bool = False) -> None:
        """End loading under the final plan. Collective when `verify` is set.

        `plan` may know bytes better than the one given at birth, but decides the same.
        """
        assert len(self._adopted) == len(plan.series), f"series {self.name!r}: layers are missing"
        assert (plan.owner, plan.schedule) == (self.plan.owner, self.plan.schedule), (
            f"series {self.name!r}: the plan changed while loading"
        )
        self.plan = plan
        if self._moves:
            resident = {p: tuple(tensors.values()) for p, tensors in self.resident.items()}
            self._transport = Broadcast(self.group, self.device, plan.owner, resident, self.slots)
            if verify:
                self._first_arrivals = FirstArrivals(self.group, self.name, plan, resident)
        self.state = State.READY

    def renew(self, position: int, module: nn.Module) -> None:
        """Between two forwards: serve what the module's tensors hold now. No address changes.

        Not collective: the owner copies them into the memory that it serves from, and every rank
        lets the module read from where it did before; the next forward moves the new bytes.
        """
        assert self.state is State.READY, f"series {self.name!r} is still loading"
        for name, served in self.weights(position).items():
            if self.owns(position):
                served.copy_(held(module)[name])
            point(module, name, served)
        if self._first_arrivals is not None:
            self._first_arrivals.forget(position)

    def reach(self, position: int) -> None:
        """At the boundary of `position`: launch what the plan launches there.

        Raises:
            TransportError: a rank of the group is gone.
        """
        assert self.state is State.READY, f"series {self.name!r} is not loaded"
        if position == 0:
            self.counters.forwards += 1
        for ahead in self.plan.schedule.launches[position]:
            slot = self.plan.schedule.slot[ahead]
            unread = self._tickets[slot]
            if unread is not None:
                # A forward that skips a linear (vllm-ascend's dummy batches) leaves its ticket:
                # two movements into one slot must not overlap.
                self._arrive(unread, position)
            try:
                self._tickets[slot] = self._transport.start(ahead, slot)
            except RuntimeError as error:
                raise self._lost(ahead, error) from error
            self.slots.occupant[slot] = ahead
            self.counters.launches += 1

    def wait(self, position: int) -> None:
        """Before the linear of `position` reads its weight: wait until it is there.

        Raises:
            TransportError: it did not arrive within the process group's timeout.
            MismatchError: with `verify`, it arrived for the first time and with other bytes.
        """
        if self._moves:
            slot = self.plan.schedule.slot[position]
            assert self.slots.occupant[slot] == position, (
                f"series {self.name!r}: position {position} is waited for but was never reached"
            )
            ticket = self._tickets[slot]
            if ticket is not None:
                started = time.perf_counter_ns()
                self._arrive(ticket, position)
                self.counters.waited_us += (time.perf_counter_ns() - started) / 1000
                self._tickets[slot] = None
                if self._first_arrivals is not None and not self.owns(position):
                    self._first_arrivals.check(position, self.slots.tensors[slot])
        self.counters.waits += 1
        if position == len(self.plan.series) - 1:
            self.on_forward_end()

    def _arrive(self, ticket: Ticket, position: int) -> None:
        try:
            ticket.wait()
        except RuntimeError as error:
            raise self._lost(position, error) from error

    def _lost(self, position: int, error: RuntimeError) -> TransportError:
        owner = self.group.ranks[self.plan.owner[position]]
        layer_id = self.plan.series.layer_ids[position]
        return self.group.lost(
            f"layer {layer_id} of series {self.name!r}, owned by rank {owner}, could not be moved",
            error,
        )

    def weights(self, position: int) -> Mapping[str, torch.Tensor]:
        """The tensors that `position`'s linear reads on this rank, by attribute name."""
        if self.owns(position):
            return self.resident[position]
        slot = self.slots.tensors[self.plan.schedule.slot[position]]
        return dict(zip(self._names, slot, strict=True))

    def resident_bytes(self) -> int:
        """Bytes of the storages that this rank owns, as really allocated."""
        return storage_bytes(t for tensors in self.resident.values() for t in tensors.values())
