"""A boundary at which a start fails is closed: what starts later waits for the compute."""

from __future__ import annotations

import pytest

from simulated.rank import batch
from simulated.scenarios import TwoSeries
from simulated.streams import Accelerator


def test_a_start_that_fails_leaves_no_boundary_open(monkeypatch: pytest.MonkeyPatch) -> None:
    both, waited = TwoSeries(Accelerator(), 1), []
    device, first = both.device, both.stacks[0]
    side = device._side
    waiting = side.wait_event
    monkeypatch.setattr(side, "wait_event", lambda event: (waited.append(event), waiting(event)))

    def start(position: int, slot: int) -> None:
        device.enqueue(lambda: None)
        raise OSError("a peer is gone")

    monkeypatch.setattr(first.series.transport, "start", start)
    with pytest.raises(OSError, match="a peer is gone"):
        first.results(lambda: [both(batch(0))])
    assert len(waited) == 1
    device.enqueue(lambda: None)
    device.enqueue(lambda: None)
    assert len(waited) == 3, "each beyond the boundary waits anew"
