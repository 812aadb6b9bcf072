"""One forward, event by event, over the schedule that the plan really has.

All ranks of a group do the same at the same time, so one rank's forward is every rank's. The link
carries one movement at a time, in the order of the starts, whatever series or group it is of. A
movement, be it a broadcast or a pull, starts at the boundary that the plan names, or when the link
is free; the compute waits before a linear whose weight has not arrived.

Note [Contention]
A movement and the compute also slow each other down, since they share memory, cores and links.
While both run, an operation of `seconds` proceeds at 1 / (1 + slowdown) of its speed, and the
movement at 1 / (1 + hindrance) of its own. A stalled device leaves the link alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, Literal, NamedTuple

from vllm_layershard.estimate.forwards.movements import Movement, MovesByLayer, by_layer

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


Track = Literal["compute", "stall", "link", "there", "product", "back"]
"""What a span shows: an operation, its wait, or a movement of a weight on the link.

The last three are of activations: all tokens gathered, their product, the results sent back.
"""


class Span(NamedTuple):
    """A piece of one forward's timeline, in seconds from its first layer's boundary.

    `suffix` names the linear that is computed, waited for or moved; "" where it is none.
    Operations, products and stalls follow one another without a gap.
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


_NONE: Final[Mapping[str, int]] = {}


class _Stretch(NamedTuple):
    """Operations of a layer from one wait to the next; the first is of the linear that waits.

    They take `seconds` alone and `slowed` while weights are in flight all the time.
    """

    suffix: str | None
    operations: tuple[TimedOperation, ...]
    seconds: float
    slowed: float


def _stretches(
    layer_id: int, operations: tuple[TimedOperation, ...], awaited: Mapping[str, int]
) -> tuple[_Stretch, ...]:
    """A layer's operations, cut before the first operation of each awaited linear."""
    names = [operation.suffix for operation in operations]
    assert set(awaited) <= set(names), f"layer {layer_id} has no operation for one of {[*awaited]}"
    starts = sorted(map(names.index, awaited))
    found: list[_Stretch] = []
    for start, end in pairwise((0, *starts, len(operations))):
        within = operations[start:end]
        found.append(
            _Stretch(
                suffix=names[start] if start in starts and len(found) else None,
                operations=within,
                seconds=sum(operation.seconds for operation in within),
                slowed=sum(each.seconds * (1.0 + each.slowdown) for each in within),
            )
        )
    return tuple(found)


class _Run:
    """The state of one forward: the clock, and the movements that have started and arrived."""

    def __init__(
        self,
        moves: Sequence[Movement] | MovesByLayer,
        hindrance: float,
        spans: list[Span] | None,
    ) -> None:
        self._moves = moves if isinstance(moves, MovesByLayer) else by_layer(moves)
        self._hinder = 1.0 + hindrance
        self._spans = spans
        self._now = 0.0
        self._started = self._arrived = 0
        self._left = 0.0
        """What the movement on the link still takes, alone."""
        self._began = 0.0

    def forward(self, layers: Sequence[TimedLayer]) -> Forward:
        """Run all layers; call it once."""
        _, started, awaited, fetch = self._moves
        cut: dict[tuple[object, ...], tuple[_Stretch, ...]] = {}  # most layers are alike
        compute = stalled = 0.0
        for layer_id, operations in layers:
            if layer_id in started:
                self._start(started[layer_id])
            here = awaited.get(layer_id, _NONE)
            key = id(operations), *here
            if key not in cut:
                cut[key] = _stretches(layer_id, operations, here)
            for suffix, within, seconds, slowed in cut[key]:
                if suffix is not None and here[suffix] >= self._arrived:
                    stalled += self._await(here[suffix])
                begin, flies = self._now, self._arrived < self._started
                if self._spans is not None or (flies and slowed >= self._left * self._hinder):
                    self._step_through(layer_id, within)
                elif flies:
                    self._now += slowed
                    self._left -= slowed / self._hinder
                if not flies:  # to the last digit the same with and without a timeline
                    self._now = begin + seconds
                compute += seconds
        exposed = max(0.0, self._now - compute)
        return Forward(compute=compute, fetch=fetch, exposed=exposed, stalled=stalled)

    def _start(self, started: int) -> None:
        """So many are started now; the link takes them one by one."""
        is_free = self._arrived == self._started
        self._started = started
        if is_free:
            self._next()

    def _next(self) -> None:
        """The link turns to the first that has not arrived."""
        if self._arrived < self._started:
            self._left, self._began = self._moves.order[self._arrived].seconds, self._now

    def _arrive(self) -> None:
        """What is on the link is there; the next one starts."""
        if self._spans is not None:
            move, took = self._moves.order[self._arrived], self._now - self._began
            self._spans.append(Span("link", move.layer_id, move.suffix, self._began, took))
        self._arrived += 1
        self._next()

    def _await(self, movement: int) -> float:
        """Stall until it has arrived; the link is alone meanwhile."""
        start, move = self._now, self._moves.order[movement]
        assert movement < self._started, f"{move.suffix} of layer {move.layer_id} is not started"
        while self._arrived <= movement:
            self._now += self._left
            self._arrive()
        waited = self._now - start
        if self._spans is not None:
            self._spans.append(Span("stall", move.layer_id, move.suffix, start, waited))
        return waited

    def _step_through(self, layer_id: int, operations: tuple[TimedOperation, ...]) -> None:
        """Run a stretch operation by operation: a weight arrives in it, or a timeline is kept."""
        for operation in operations:
            start = self._now
            self._compete(operation)
            if self._spans is not None:
                took = self._now - start
                self._spans.append(Span("compute", layer_id, operation.suffix, start, took))

    def _compete(self, operation: TimedOperation) -> None:
        """Run an operation beside what is on the link."""
        work, slow, hinder = operation.seconds, 1.0 + operation.slowdown, self._hinder
        while self._arrived < self._started:
            until_done, until_free = work * slow, self._left * hinder
            if until_done < until_free:
                self._now += until_done
                self._left -= until_done / hinder
                return
            self._now += until_free
            work = max(0.0, work - until_free / slow)
            self._arrive()
        self._now += work
