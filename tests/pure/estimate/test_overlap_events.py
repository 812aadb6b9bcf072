"""The overlap equals a discrete-event simulator written from the design's prose.

That one knows neither plan nor schedule. It keeps a clock in exact fractions, explicit slots and
a queue for the link, and moves from event to event.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_layershard.estimate.forwards.movements import movements
from vllm_layershard.estimate.forwards.overlap import TimedLayer, TimedOperation, simulate
from vllm_layershard.plan import Linear, TensorSpec, build_plan, series_of, stage_layers

NAMES = ("q_proj", "o_proj", "down_proj")


@dataclass
class Transfer:
    name: str
    position: int
    slot: int
    left: Fraction


@dataclass
class Series:
    """What the design says of one series, from its layers and the prefetch step alone.

    `first` is the layer at which the first ones start: the first one or, kept, another.
    """

    layers: list[int]
    seconds: int
    step: int
    first: int
    slots: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.slots = ["free"] * (self.step + 1)

    def starts(self, layer_id: int) -> list[int]:
        """At the first boundary as many as there are slots, later the one `step` ahead."""
        if layer_id == self.first:
            return list(range(len(self.slots)))
        if layer_id not in self.layers[1:]:
            return []
        ahead = self.layers.index(layer_id) + self.step
        return [ahead] if ahead < len(self.layers) else []


def events(
    layers: dict[int, list[tuple[str, int, Fraction]]],
    all_series: dict[str, Series],
    hindrance: Fraction,
) -> tuple[Fraction, Fraction]:
    """The end of a forward and the time it stalled."""
    clock = stalled = Fraction(0)
    link: list[Transfer] = []
    for layer_id, steps in layers.items():
        # The boundary. Everything before it has been computed.
        for name, series in all_series.items():
            for position in series.starts(layer_id):
                slot = position % len(series.slots)
                assert series.slots[slot] == "free", "a start into a slot in use"
                series.slots[slot] = ("arriving", position)
                link.append(Transfer(name, position, slot, Fraction(series.seconds)))
        for name, seconds, slowdown in steps:
            mine = all_series.get(name)
            reads = mine is not None and layer_id in mine.layers
            work = Fraction(seconds)
            running = False
            while True:
                # All that happens at this instant.
                while link and link[0].left == 0:
                    done = link.pop(0)
                    slots = all_series[done.name].slots
                    assert slots[done.slot] == ("arriving", done.position)
                    slots[done.slot] = ("full", done.position)
                if not running:
                    if reads:
                        position = mine.layers.index(layer_id)
                        slot = position % len(mine.slots)
                        running = mine.slots[slot] == ("full", position)
                        if running:
                            mine.slots[slot] = ("read", position)
                    else:
                        running = True
                if running and work == 0:
                    break
                # The next event: the step ends, or the link's first transfer does.
                both = running and bool(link)
                pace = 1 / (1 + slowdown) if both else Fraction(1)
                flow = 1 / (1 + hindrance) if both else Fraction(1)
                until = [link[0].left / flow] if link else []
                until += [work / pace] if running else []
                passed = min(until)
                clock += passed
                if link:
                    link[0].left -= passed * flow
                if running:
                    work -= passed * pace
                else:
                    stalled += passed
            if reads:
                mine.slots[mine.layers.index(layer_id) % len(mine.slots)] = "free"
    assert not link, "in flight after the forward"
    assert all(slot == "free" for series in all_series.values() for slot in series.slots)
    return clock, stalled


@st.composite
def cases(draw):
    """A pipeline stage of a model whose layers differ, some of whose linears are sharded."""
    count = draw(st.integers(1, 12))
    pp = draw(st.integers(1, min(3, count)))
    stage = draw(st.sampled_from(stage_layers(count, pp)))
    stride = draw(st.integers(1, 3))
    slowdowns = st.sampled_from([Fraction(0), Fraction(1, 3), Fraction(2)])
    layers = {}
    for layer_id in stage:
        kept = draw(st.permutations(NAMES))[: draw(st.integers(0, 3))]
        names = [n for n in NAMES if n in kept]
        steps = [name for name in names for name in ("", name)] + [""]
        layers[layer_id] = [(name, draw(st.integers(0, 9)), draw(slowdowns)) for name in steps]
    sharded = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    members = {
        name: [
            i for i, steps in layers.items() if i % stride == 0 and name in [s[0] for s in steps]
        ]
        for name in sharded
    }
    members = {name: ids for name, ids in members.items() if ids}
    firsts = {name: ids[0] for name, ids in members.items()}
    keep_first = draw(st.booleans())
    if keep_first:
        members = {name: ids[1:] or ids for name, ids in members.items()}
    most = min(map(len, members.values()), default=1)
    step = draw(st.integers(0, min(most - 1, 4)))
    seconds = {name: draw(st.integers(0, 25)) for name in members}
    hindrance = draw(st.sampled_from([Fraction(0), Fraction(1, 2), Fraction(3)]))
    moved = {name: Series(ids, seconds[name], step, firsts[name]) for name, ids in members.items()}
    return layers, moved, keep_first, step, stride, draw(st.integers(2, 5)), hindrance


@settings(max_examples=3000, suppress_health_check=list(HealthCheck))
@given(cases())
def test_equals_the_event_simulator(case) -> None:
    layers, moved, keep_first, step, stride, ranks, hindrance = case
    total, stalled = events(layers, moved, hindrance)
    linears = {
        name: [
            Linear(
                f"model.layers.{i}.{name}",
                i,
                True,
                (TensorSpec("weight", (1,), "int8", moved[name].seconds + 1),),
            )
            for i, steps in layers.items()
            if name in [s[0] for s in steps]
        ]
        for name in moved
    }
    series = series_of(linears, stride, keep_first=keep_first)
    plan = build_plan(list(series), ranks, step, layer_stride=stride)
    prefixes = [[linear.prefix for linear in matched] for matched in series.values()]
    forward = simulate(
        [
            TimedLayer(i, tuple(TimedOperation(n, float(s), float(slow)) for n, s, slow in steps))
            for i, steps in layers.items()
        ],
        movements(plan, prefixes, lambda nbytes: float(nbytes - 1)) if series else (),
        float(hindrance),
    )
    assert forward.total == pytest.approx(float(total), rel=1e-9)
    assert forward.stalled == pytest.approx(float(stalled), rel=1e-9, abs=1e-9)
    compute = sum(s for steps in layers.values() for _, s, _ in steps)
    assert forward.compute == compute
    assert forward.exposed == pytest.approx(float(total) - compute, rel=1e-9, abs=1e-9)
    assert forward.fetch == sum(s.seconds * len(s.layers) for s in moved.values())
