"""One forward, event by event, over the schedule that the plan really has.

All ranks of a group do the same at the same time, so one rank's forward is every rank's. The link
carries one movement at a time, in the order of the starts, whatever series or group it is of. A
movement, be it a broadcast or a pull, starts at the boundary that the plan names, or when the link
is free; the compute waits before a linear whose weight has not arrived.

Note [Contention]
A movement and the compute also slow each other down, since they share memory, cores and links.
While both run, an operation of `seconds` proceeds at 1 / (1 + slowdown) of its speed, and the
movement at 1 / (1 + hindrance) of its own. A stalled device leaves the link alone.

Note [Slots]
A start writes a slot, which must have no reader left. It has none: the boundary of position p
comes after the linear of p - 1 in the compute's order, and a transport starts after all compute
given before (see plan/schedule.py). `simulate` asserts it for every start.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from vllm_layershard.plan import Plan
from vllm_layershard.plan.linear import suffix_of

TOLERANCE: Final = 0.01
"""A movement is called hidden when it lengthens a forward by at most this share of its compute;
a prefetch step is as good as the best when its forward is at most this share longer."""


class TimedOperation(NamedTuple):
    """One operation of a layer: `suffix` names its linear within the layer, "" if it is none.

    It takes `seconds` alone and `seconds * (1 + slowdown)` while a weight is in flight.
    """

    suffix: str
    seconds: float
    slowdown: float = 0.0


class TimedLayer(NamedTuple):
    """One decoder layer's operations in forward order."""

    layer_id: int
    operations: tuple[TimedOperation, ...]


class Movement(NamedTuple):
    """One position of one series: started at a layer's boundary, waited for by a linear.

    `buffer` is the series and the slot that it writes; `seconds` what it takes alone.
    """

    layer_id: int
    suffix: str
    start_layer: int
    seconds: float
    buffer: tuple[str, int]


Track = Literal["compute", "stall", "link"]
"""What a span shows: an operation, its wait for a weight, or a movement on the link."""


class Span(NamedTuple):
    """A piece of one forward's timeline, in seconds from its first layer's boundary.

    `suffix` names the linear that is computed, waited for or moved; "" where it is none.
    Operations and stalls follow one another without a gap.
    """

    track: Track
    layer_id: int
    suffix: str
    start_s: float
    seconds: float


class Forward(NamedTuple):
    """Seconds of one forward: compute alone, the link's time alone, and what is added.

    `exposed` is all by which the forward takes longer than the compute alone: waiting, and the
    slower pace beside a movement. `stalled` is the waiting in it. `spans` is the timeline, where
    one was asked for (`trace`).
    """

    compute: float
    fetch: float
    exposed: float
    stalled: float
    spans: tuple[Span, ...] = ()

    @property
    def total(self) -> float:
        """What the forward takes."""
        return self.compute + self.exposed

    @property
    def slowdown(self) -> float:
        """What is added, as a share of the compute."""
        return self.exposed / self.compute if self.compute else 0.0

    @property
    def hidden(self) -> bool:
        """Whether what is added is within TOLERANCE."""
        return self.slowdown <= TOLERANCE

    @property
    def link_bound(self) -> bool:
        """Whether the movement alone takes longer than the compute: then no step hides them."""
        return self.fetch > self.compute


def movements(
    plan: Plan,
    prefixes: Sequence[Sequence[str]],
    seconds_of: Callable[[int], float],
    group_rank: int | None = None,
) -> tuple[Movement, ...]:
    """The movements of one forward of one group, in the order of series and starts.

    `prefixes[s][p]` is the linear at position p of series s, `seconds_of(bytes)` the time of one.
    With `group_rank` only those that this rank takes part in: a pull does not concern the owner.
    """
    found: list[Movement] = []
    for series_plan, names in zip(plan.series, prefixes, strict=True):
        series, schedule = series_plan.series, series_plan.schedule
        if not any(schedule.launches):
            continue
        seconds = seconds_of(series.layer_bytes)
        pool = f"{series.name} {series.tp_replicated}"
        found.extend(
            Movement(
                layer_id=series.layer_ids[position],
                suffix=suffix_of(names[position]),
                start_layer=series.boundary(boundary),
                seconds=seconds,
                buffer=(pool, schedule.slot[position]),
            )
            for boundary, started in enumerate(schedule.launches)
            for position in started
            if group_rank is None or not series_plan.is_resident(position, group_rank)
        )
    return tuple(found)


class MovesByLayer(NamedTuple):
    """The movements of a forward by the layer that starts them, and by the linear that waits."""

    started: Mapping[int, Sequence[Movement]]
    awaited: Mapping[int, Mapping[str, Sequence[Movement]]]
    seconds: float


def by_layer(moves: Sequence[Movement]) -> MovesByLayer:
    """Sort movements once for all forwards that have them."""
    started: dict[int, list[Movement]] = {}
    awaited: dict[int, dict[str, list[Movement]]] = {}
    for move in moves:
        started.setdefault(move.start_layer, []).append(move)
        awaited.setdefault(move.layer_id, {}).setdefault(move.suffix, []).append(move)
    return MovesByLayer(started, awaited, sum(move.seconds for move in moves))


def simulate(
    layers: Sequence[TimedLayer], moves: Sequence[Movement] | MovesByLayer, hindrance: float = 0.0
) -> Forward:
    """Run one forward. `hindrance`: see the note [Contention]."""
    return _Run(moves, hindrance, None).forward(layers)


def trace(
    layers: Sequence[TimedLayer], moves: Sequence[Movement] | MovesByLayer, hindrance: float = 0.0
) -> Forward:
    """The same with its timeline."""
    spans: list[Span] = []
    forward = _Run(moves, hindrance, spans).forward(layers)
    return forward._replace(spans=tuple(sorted(spans, key=lambda span: (span.start_s, span.track))))


_NONE: Final[Mapping[str, Sequence[Movement]]] = {}


class _Run:
    """The state of one forward: the clock, the link's queue, and who reads which slot."""

    def __init__(
        self,
        moves: Sequence[Movement] | MovesByLayer,
        hindrance: float,
        spans: list[Span] | None,
    ) -> None:
        self._moves = moves if isinstance(moves, MovesByLayer) else by_layer(moves)
        self._hinder = 1.0 + hindrance
        self._spans = spans
        self._queue: deque[Movement] = deque()
        self._left = 0.0
        """What the first in the queue still takes, alone."""
        self._began = 0.0
        self._now = 0.0
        self._taken: set[tuple[str, int]] = set()
        self._rests: dict[tuple[int, int], float] = {}
        """Sums of operations, by the identity of a layer's and where they begin."""

    def forward(self, layers: Sequence[TimedLayer]) -> Forward:
        """Run all layers; call it once."""
        queue, taken, spans = self._queue, self._taken, self._spans
        started, awaited, fetch = self._moves
        compute = stalled = 0.0
        for layer_id, operations in layers:
            for move in started.get(layer_id, ()):
                self._start(move)
            here = awaited.get(layer_id, _NONE)
            waiting = len(here)
            for i, operation in enumerate(operations):
                if not (waiting or queue) and spans is None:
                    rest = self._rest(operations, i)
                    self._now += rest
                    compute += rest
                    break
                moves = here.get(operation.suffix, ()) if waiting else ()
                if moves and moves[0].buffer not in taken:
                    moves = ()  # an operation of this name has read them already
                for move in moves:
                    if queue:
                        stalled += self._await(move)
                start = self._now
                if queue:
                    self._compete(operation)
                else:
                    self._now = start + operation.seconds
                compute += operation.seconds
                if moves:
                    waiting -= 1
                    for move in moves:
                        taken.remove(move.buffer)
                if spans is not None:
                    took = self._now - start
                    spans.append(Span("compute", layer_id, operation.suffix, start, took))
            assert not waiting, f"layer {layer_id} has no operation for one of {[*here]}"
        exposed = max(0.0, self._now - compute)
        return Forward(compute=compute, fetch=fetch, exposed=exposed, stalled=stalled)

    def _rest(self, operations: tuple[TimedOperation, ...], start: int) -> float:
        """Seconds of the operations from there on, beside which nothing moves."""
        key = id(operations), start
        if key not in self._rests:
            self._rests[key] = sum(operation.seconds for operation in operations[start:])
        return self._rests[key]

    def _start(self, move: Movement) -> None:
        assert move.buffer not in self._taken, f"{move.buffer} is written while it is still read"
        self._taken.add(move.buffer)
        if not self._queue:
            self._left, self._began = move.seconds, self._now
        self._queue.append(move)

    def _await(self, awaited: Movement) -> float:
        """Stall until it has arrived; the link is alone meanwhile."""
        start = self._now
        while awaited in self._queue:
            self._now += self._left
            self._arrive()
        waited = self._now - start
        if waited and self._spans is not None:
            self._spans.append(Span("stall", awaited.layer_id, awaited.suffix, start, waited))
        return waited

    def _compete(self, operation: TimedOperation) -> None:
        """Run an operation beside the link's queue."""
        work, slow, hinder = operation.seconds, 1.0 + operation.slowdown, self._hinder
        while self._queue:
            until_done, until_free = work * slow, self._left * hinder
            if until_done < until_free:
                self._now += until_done
                self._left -= until_done / hinder
                return
            self._now += until_free
            work = max(0.0, work - until_free / slow)
            self._arrive()
        self._now += work

    def _arrive(self) -> None:
        """The first in the queue is there; the next one starts."""
        move = self._queue.popleft()
        if self._spans is not None:
            took = self._now - self._began
            self._spans.append(Span("link", move.layer_id, move.suffix, self._began, took))
        if self._queue:
            self._left, self._began = self._queue[0].seconds, self._now
