"""ShardedSeries: obeys a SeriesPlan on one rank. All index arithmetic stands in the plan.

In a forward, `reach(p)` stands at the boundary of position p's decoder layer and starts what the
plan says; `wait(p)` stands before the linear reads its weight. See the note [A self-contained
forward] in plan/schedule.py. How a series gets there: runtime/loading.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from vllm_layershard.config import Placement, TransportName
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.ranks.first_arrivals import FirstArrivals
from vllm_layershard.runtime.ranks.group import Group
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.stats import Counters
from vllm_layershard.runtime.transport import Transport
from vllm_layershard.runtime.transport.under_way import UnderWay
from vllm_layershard.runtime.weights import Weights


class ShardedSeries:
    """One loaded series on one rank; no address changes any more.

    `transport` fills the slots of `weights`. `first_arrivals` checks each position once, if given.
    """

    def __init__(
        self,
        plan: SeriesPlan,
        group: Group,
        weights: Weights,
        transport: Transport,
        first_arrivals: FirstArrivals | None = None,
    ) -> None:
        self.plan = plan
        self.group = group
        self.transport = transport
        self.counters = Counters()
        self.on_forward_start: Callable[[Sequence[int]], None] = lambda unread: None
        """Is given the positions that the last forward has moved and never waited for."""
        self.on_forward_end: Callable[[], None] = lambda: None
        self.on_renewed: Callable[[int, int], None] = lambda position, fingerprint: None
        self._weights = weights
        self._first_arrivals = first_arrivals
        self._under_way = UnderWay(plan, group)

    @property
    def name(self) -> str:
        """The series' name, as configured."""
        return self.plan.series.name

    @property
    def transport_name(self) -> TransportName:
        """How its layers move, or would move if they were not replicated."""
        return self.transport.name

    @property
    def placement(self) -> Placement:
        """Where its layers are stored."""
        if not self.plan.moves:
            return "replicated"
        return "striped" if self.plan.is_striped else "round_robin"

    @property
    def resident(self) -> Mapping[int, Mapping[str, torch.Tensor]]:
        """The tensors that this rank owns, by position and attribute name."""
        return self._weights.resident

    @property
    def slots(self) -> SlotPool:
        """Where the others' layers arrive."""
        return self._weights.slots

    @property
    def in_flight(self) -> tuple[int, ...]:
        """The positions that have started to move and were not waited for yet."""
        return self._under_way.positions

    def has_started(self, position: int) -> bool:
        """Whether the position's weight is where its linear reads it, or on its way there."""
        return self._under_way.has_started(position)

    def has_arrived(self, position: int) -> bool:
        """Whether the position's weight is where its linear reads it, and was waited for."""
        return self.has_started(position) and self._under_way.arriving[position] is None

    def owns(self, position: int) -> bool:
        """Whether this rank stores the position's whole weight."""
        return self._weights.owns(position)

    def weights(self, position: int) -> Mapping[str, torch.Tensor]:
        """The tensors that `position`'s linear reads on this rank, by attribute name."""
        return self._weights.read_at(position)

    def rows(self, position: int) -> torch.Tensor | None:
        """What this rank stores of a weight that is cut at rows: see Weights.rows_at."""
        return self._weights.rows_at(position)

    def resident_bytes(self) -> int:
        """Bytes of the storages that this rank stores for good, as really allocated."""
        return self._weights.resident_bytes()

    def begin(self) -> None:
        """At the start of a forward, whatever it moves.

        Raises:
            TransportError: a rank of the group is gone, or was not given the weights of a reload.
            HostError: the host wants each weight read, and the last forward has not read one.
        """
        self.counters.forwards += 1
        self.on_forward_start(self._under_way.begin())
        self.transport.begin()

    def reach(self, position: int) -> None:
        """At the boundary of `position`: start the movements that the plan puts there.

        Raises:
            TransportError, HostError: at the first position, as `begin`.
        """
        if position == 0:
            self.begin()
        under_way, counters = self._under_way, self.counters
        for ahead, nbytes in under_way.starts[position]:
            under_way.start(ahead, self.transport)
            counters.launches += 1
            counters.weight_bytes += nbytes

    def wait(self, position: int) -> None:
        """Before the linear of `position` reads its weight: wait until it is there.

        Raises:
            TransportError: it did not arrive within the process group's timeout.
            MismatchError: with `verify`, it arrived for the first time and with other bytes.
        """
        under_way, counters = self._under_way, self.counters
        if under_way.arriving[position] is not None:
            started = time.perf_counter_ns()
            under_way.wait(position)
            counters.waited_us += (time.perf_counter_ns() - started) / 1000
            if self._first_arrivals is not None and not self.owns(position):
                slot = self.plan.schedule.slot[position]
                self._first_arrivals.check(position, self.slots.tensors[slot])
        else:
            assert under_way.has_started(position), (
                f"{self.plan.layer_name(position)} is waited for but was never reached"
            )
        counters.waits += 1
        if position == len(under_way.starts) - 1:
            self.on_forward_end()

    def drain(self) -> None:
        """Between two forwards: wait for what the last one has started and never read.

        Raises:
            TransportError: it did not arrive.
        """
        self._under_way.forget_captured()
        for position in self.in_flight:
            self._under_way.wait(position)

    def reload(self, position: int, module: nn.Module) -> None:
        """While no rank reads: serve what the module's tensors hold now: see Weights.reload.

        Raises:
            HostError: a new tensor is in a format of the device's own.
        """
        fingerprint = self._weights.reload(position, module)
        if self._first_arrivals is not None:
            self._first_arrivals.forget(position)
        self.on_renewed(position, fingerprint)
