"""Reloads of which something fails: no forward ever reads two generations, and nobody hangs."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from reloads.play import Outcome, play
from reloads.schedule import Schedule, schedules
from vllm_layershard.runtime import shared_memory

AT_ONCE = 6
"""Their ranks wait for each other most of the time."""

WHOLE = 0.95
"""The least share, of those without a kill, after which all ranks serve the new weights."""


def played(todo: list[Schedule]) -> list[Outcome]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(play, todo))


def check(outcomes: list[Outcome]) -> None:
    faulty = [outcome for outcome in outcomes if outcome.faults]
    assert not faulty, faulty[:3]
    without_kill = [outcome for outcome in outcomes if not outcome.schedule.kills]
    not_whole = [outcome for outcome in without_kill if not outcome.whole]
    assert len(not_whole) <= (1 - WHOLE) * len(without_kill), not_whole[:3]
    shared_memory.sweep()
    assert not [name for name in shared_memory.names() if "reloads" in name]


@pytest.mark.timeout(400)
def test_no_forward_reads_two_generations():
    todo = schedules(40)
    assert len(Counter((s.fault.kind, s.fault.where) for s in todo)) == 9, "of every kind"
    check(played(todo))


@pytest.mark.matrix(part="reloads")
@pytest.mark.timeout(1800)
def test_no_forward_reads_two_generations_in_a_thousand_schedules():
    todo = schedules(1000, seed=2)
    assert len(set(todo)) == 1000
    check(played(todo))
