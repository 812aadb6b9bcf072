"""Each wait and each record of the runtime is taken away in turn: some order of work is wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import vllm_layershard.runtime
from simulated.deletions import Deletion, deletions, ordering_calls
from simulated.scenarios import SCENARIOS, STEPS, faults
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.device import StreamDevice
from vllm_layershard.runtime.reload import Reloads
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.transport import Broadcast, Ticket
from vllm_layershard.runtime.transport.under_way import UnderWay

OWNERS = (StreamDevice, ShardedSeries, UnderWay, Ticket, Broadcast, Reloads)

OTHERS = {
    "Reloads.__init__-join": "takes a place among the ranks: test_reload.py",
    "wait-wait": "is the op, where a compiler looks on: tests/ranks/test_compiled.py",
    "_wait_for-wait": "test_without_the_wait_of_the_op_some_order_is_wrong",
    "MovingSeries._begin-drain": "test_moving_series.py",
    "MovedLinear._wait-wait": "tests/ranks/moves/test_linear.py",
    "IpcExports.handles-synchronize": "test_device_exports.py",
}
"""Those that no scenario of streams has, and which test fails without them."""


def place_of(deletion: Deletion) -> str:
    return f"{deletion.owner.__name__}.{deletion.method}-{deletion.called}"


ALL = [
    deletion
    for owner in OWNERS
    for deletion in deletions(owner)
    if place_of(deletion) not in OTHERS
]


def some_fault() -> str | None:
    """The first thing that goes wrong in any scenario."""
    found = (fault for each in SCENARIOS for step in STEPS for fault in faults(each, step))
    return next(found, None)


@pytest.mark.parametrize("deletion", ALL, ids=str)
def test_without_any_wait_or_record_some_order_is_wrong(
    deletion: Deletion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion.owner, deletion.method, deletion.without())
    assert some_fault() is not None


def test_without_the_wait_of_the_op_some_order_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops._work, "wait", lambda linear: None)
    assert some_fault() is not None


def test_all_waits_and_records_of_the_runtime_are_deleted() -> None:
    """One that is added anywhere comes among them, or is named with the test that finds it."""
    sources = sorted(Path(vllm_layershard.runtime.__path__[0]).rglob("*.py"))
    found = Counter(call for each in sources for call in ordering_calls(each.read_text()))
    assert found == Counter(map(place_of, ALL)) + Counter(OTHERS.keys())
