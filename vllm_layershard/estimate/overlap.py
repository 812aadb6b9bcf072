"""Overlap: one forward, event by event, over the schedule that the plan really has.

The link carries one broadcast at a time, in the order of the launches. A broadcast starts at the
boundary that launches it, or when the link is free; the compute waits before a linear whose
weight has not arrived. That a slot is free is implied by the boundary (see plan/schedule.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vllm_layershard.plan import Plan
from vllm_layershard.plan.linear import suffix_of


@dataclass(frozen=True, slots=True)
class TimedStep:
    """One step of a layer: `suffix` names its linear within the layer, "" if it is none."""

    suffix: str
    seconds: float


@dataclass(frozen=True, slots=True)
class TimedLayer:
    """One decoder layer's steps in forward order."""

    layer_id: int
    steps: tuple[TimedStep, ...]


@dataclass(frozen=True, slots=True)
class Movement:
    """One position of one series: launched at a layer's boundary, waited for by a linear."""

    layer_id: int
    suffix: str
    launch_layer: int
    seconds: float


Track = Literal["compute", "stall", "link"]
"""What a span shows: a step on the device, its wait for a weight, or a broadcast on the link."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of one forward's timeline, in seconds from its first layer's boundary.

    `suffix` names the linear that is computed, waited for or moved; "" for a step that is none.
    Steps and stalls follow one another without a gap.
    """

    track: Track
    layer_id: int
    suffix: str
    start_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Forward:
    """Seconds of one forward: compute alone, the link's busy time, and the waiting.

    `spans` is its timeline, where one was asked for (`trace`).
    """

    compute: float
    fetch: float
    exposed: float
    spans: tuple[Span, ...] = ()

    @property
    def total(self) -> float:
        """What the forward takes."""
        return self.compute + self.exposed

    @property
    def link_bound(self) -> bool:
        """Whether the broadcasts alone take longer than the compute: then no step hides them."""
        return self.fetch > self.compute


def movements(
    plan: Plan, prefixes: Sequence[Sequence[str]], seconds_of: Callable[[int], float]
) -> tuple[Movement, ...]:
    """The broadcasts of one forward of one group, in the order of series and launches.

    `prefixes[s][p]` is the linear at position p of series s, `seconds_of(bytes)` the time of one.
    """
    found: list[Movement] = []
    for series_plan, names in zip(plan.series, prefixes, strict=True):
        layer_ids = series_plan.series.layer_ids
        seconds = seconds_of(series_plan.series.layer_bytes)
        for boundary, launched in enumerate(series_plan.schedule.launches):
            found.extend(
                Movement(
                    layer_id=layer_ids[position],
                    suffix=suffix_of(names[position]),
                    launch_layer=layer_ids[boundary],
                    seconds=seconds,
                )
                for position in launched
            )
    return tuple(found)


def simulate(layers: Sequence[TimedLayer], moves: Sequence[Movement]) -> Forward:
    """Run one forward."""
    return _run(layers, moves, None)


def trace(layers: Sequence[TimedLayer], moves: Sequence[Movement]) -> Forward:
    """The same with its timeline."""
    spans: list[Span] = []
    return replace(_run(layers, moves, spans), spans=tuple(spans))


def _run(
    layers: Sequence[TimedLayer], moves: Sequence[Movement], spans: list[Span] | None
) -> Forward:
    launched_at: dict[int, list[Movement]] = {}
    for move in moves:
        launched_at.setdefault(move.launch_layer, []).append(move)
    arrival: dict[tuple[int, str], float] = {}
    now = link_free = compute = exposed = 0.0
    for layer in layers:
        for move in launched_at.get(layer.layer_id, ()):
            start = max(link_free, now)
            link_free = start + move.seconds
            arrival[move.layer_id, move.suffix] = link_free
            if spans is not None:
                spans.append(Span("link", move.layer_id, move.suffix, start, move.seconds))
        for step in layer.steps:
            stall = max(0.0, arrival.get((layer.layer_id, step.suffix), 0.0) - now)
            if spans is not None:
                if stall:
                    spans.append(Span("stall", layer.layer_id, step.suffix, now, stall))
                start = now + stall
                spans.append(Span("compute", layer.layer_id, step.suffix, start, step.seconds))
            now += stall + step.seconds
            exposed += stall
            compute += step.seconds
    return Forward(compute=compute, fetch=sum(move.seconds for move in moves), exposed=exposed)
