"""Properties of a plan, replayed by a simulator of its own over several forwards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_layershard.errors import PlanError
from vllm_layershard.plan import EVERY_RANK, Series, build_plan


@st.composite
def planned(draw):
    """A series that may start anywhere and have gaps, with a legal step, group and stride."""
    stride = draw(st.integers(1, 3))
    count = draw(st.integers(1, 70))
    start = draw(st.integers(0, 61))
    gap = draw(st.integers(1, 4))
    layer_ids = tuple((start + i * gap) * stride for i in range(count))
    series = Series("o_proj", layer_ids, draw(st.integers(1, 10**9)), draw(st.integers(0, 99)))
    step = draw(st.integers(0, count - 1))
    plan = build_plan([series], draw(st.integers(2, 64)), step, layer_stride=stride)
    return plan, plan.series[0]


@given(planned())
def test_every_layer_has_one_owner_by_its_absolute_index(case):
    plan, s = case
    for position, layer_id in enumerate(s.series.layer_ids):
        assert s.owner[position] == layer_id // plan.layer_stride % plan.group_size
        holders = [r for r in range(plan.group_size) if s.is_resident(position, r)]
        assert holders == [s.owner[position]]
    owned = [layer for r in range(plan.group_size) for layer in s.owned_layers(r)]
    assert sorted(owned) == list(s.series.layer_ids)


@given(planned(), st.integers(1, 3))
def test_no_forward_overwrites_what_is_still_to_be_read(case, forwards):
    """Replay boundaries in order: launch what the plan launches, then read."""
    plan, s = case
    n = len(s.series)
    slots: list[int | None] = [None] * s.schedule.num_slots
    unread: set[int] = set()
    addresses = set()
    for _ in range(forwards):
        launched = []
        for boundary in range(n):
            for position in s.schedule.launches[boundary]:
                slot = s.schedule.slot[position]
                assert slots[slot] not in unread, "launched over a layer that is still to be read"
                slots[slot] = position
                unread.add(position)
                launched.append(position)
                assert s.schedule.launch_at[position] == boundary <= position
            assert slots[s.schedule.slot[boundary]] == boundary, "waited for, but not launched"
            unread.remove(boundary)
        assert launched == list(range(n)), "once each, in order"
        assert not unread, "in flight between two forwards"
        addresses.add(s.schedule.slot)
    assert len(addresses) == 1
    assert s.schedule.num_slots == plan.prefetch_step + 1


@given(planned())
def test_prefetch_runs_as_far_ahead_as_the_step_says(case):
    plan, s = case
    for position, boundary in enumerate(s.schedule.launch_at):
        assert position - boundary == min(position, plan.prefetch_step)


@given(planned())
def test_the_ledger_adds_up(case):
    plan, s = case
    ledger, layer = s.ledger, s.series.layer_bytes
    assert ledger.replicated_bytes == len(s.series) * layer == sum(ledger.resident_bytes)
    assert ledger.slot_bytes == (plan.prefetch_step + 1) * layer
    for rank in range(plan.group_size):
        assert ledger.resident_bytes[rank] == len(s.owned_layers(rank)) * layer
        held = ledger.resident_bytes[rank] + ledger.slot_bytes
        assert ledger.saved_bytes[rank] == ledger.replicated_bytes - held
    assert plan.saved_bytes == ledger.saved_bytes


@given(planned())
def test_the_replicated_control_moves_and_saves_nothing(case):
    plan, s = case
    control = build_plan(
        [s.series], plan.group_size, plan.prefetch_step, "replicated", plan.layer_stride
    )
    (c,) = control.series
    assert set(c.owner) == {EVERY_RANK}
    assert not any(c.schedule.launches)
    assert len(c.schedule.launches) == len(s.series)
    assert c.ledger.slot_bytes == 0
    assert set(c.ledger.resident_bytes) == {c.ledger.replicated_bytes}
    assert set(control.saved_bytes) == {0}
    assert all(c.owned_layers(r) == s.series.layer_ids for r in range(plan.group_size))


def series(count: int = 5, name: str = "o_proj", layer_bytes: int = 10) -> Series:
    return Series(name, tuple(range(count)), layer_bytes)


def test_deepseek_v3_on_a_node_of_eight():
    plan = build_plan([series(61, layer_bytes=117_440_512)], 8, 1)
    assert [len(plan.series[0].owned_layers(r)) for r in range(8)] == [8, 8, 8, 8, 8, 7, 7, 7]
    assert min(plan.saved_bytes) == 5_989_466_112


def test_more_ranks_than_layers_leave_some_without():
    (s,) = build_plan([series(3)], 8, 1).series
    assert [len(s.owned_layers(r)) for r in range(8)] == [1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("count", "step"), [(1, 1), (1, 64), (2, 2), (5, 5), (5, 64)])
def test_a_step_that_the_series_cannot_use_is_refused(count, step):
    with pytest.raises(PlanError) as error:
        build_plan([series(count)], 2, step)
    layers = "1 layer" if count == 1 else f"{count} layers"
    assert str(error.value) == (
        f"series 'o_proj' has {layers}; prefetch_step {step} needs at least {step + 1}: "
        f"lower it to at most {count - 1} or leave 'o_proj' out"
    )


@pytest.mark.parametrize(("count", "step"), [(1, 0), (2, 0), (2, 1)])
def test_short_series_are_legal_and_may_save_less_than_nothing(count, step):
    plan = build_plan([series(count)], 2, step)
    assert min(plan.saved_bytes) <= 0


def test_a_group_of_one_is_refused_but_for_the_control():
    with pytest.raises(PlanError, match="a group of one rank has nobody to share with"):
        build_plan([series()], 1, 1)
    assert build_plan([series()], 1, 1, "replicated").saved_bytes == (0,)
