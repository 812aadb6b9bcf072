"""Properties of a plan, replayed by a simulator of its own over several forwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_layershard.errors import PlanError
from vllm_layershard.plan import EVERY_RANK, Series, build_plan, stage_layers

"""How long an example takes says how busy the machine is."""


@st.composite
def planned(draw):
    """A series that may start anywhere and have gaps, with a legal step, group and stride."""
    stride = draw(st.integers(1, 3))
    start = draw(st.integers(0, 61))
    if draw(st.booleans()):
        gap = draw(st.integers(1, 4))
        layer_ids = tuple((start + i * gap) * stride for i in range(draw(st.integers(1, 70))))
    else:
        uneven = draw(st.sets(st.integers(0, 30), min_size=1))
        layer_ids = tuple((start + i) * stride for i in sorted(uneven))
    count = len(layer_ids)
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
    """Replay boundaries in order: start what the plan starts, then read."""
    plan, s = case
    n = len(s.series)
    slots: list[int | None] = [None] * s.schedule.num_slots
    unread: set[int] = set()
    addresses = set()
    for _ in range(forwards):
        started = []
        for boundary in range(n):
            for position in s.schedule.launches[boundary]:
                slot = s.schedule.slot[position]
                assert slots[slot] not in unread, "started over a layer that is still to be read"
                slots[slot] = position
                unread.add(position)
                started.append(position)
                assert s.schedule.launch_at[position] == boundary <= position
            assert slots[s.schedule.slot[boundary]] == boundary, "waited for, but not started"
            unread.remove(boundary)
        assert started == list(range(n)), "once each, in order"
        assert not unread, "in flight between two forwards"
        addresses.add(s.schedule.slot)
    assert len(addresses) == 1
    assert s.schedule.num_slots == plan.prefetch_step + 1


@given(planned(), st.integers(0, 9))
def test_with_a_kept_layer_ahead_only_the_first_boundary_is_another(case, ahead):
    """Replay layer by layer: boundaries in the order of the layers, each read in its own."""
    plan, s = case
    ids = s.series.layer_ids
    kept = max(0, ids[0] - ahead)
    series = replace(s.series, kept_layer=kept)
    (k,) = build_plan(
        [series], plan.group_size, plan.prefetch_step, layer_stride=plan.layer_stride
    ).series
    assert (k.owner, k.schedule, k.ledger) == (s.owner, s.schedule, s.ledger)
    assert k.owner_of_layer == {kept: EVERY_RANK} | s.owner_of_layer
    boundaries = {series.boundary(p): p for p in range(len(ids))}
    assert list(boundaries) == [kept, *ids[1:]]
    slots: list[int | None] = [None] * k.schedule.num_slots
    for layer_id in range(kept, ids[-1] + 1):
        for position in k.schedule.launches[boundaries[layer_id]] if layer_id in boundaries else ():
            assert slots[k.schedule.slot[position]] is None, "started over one still to be read"
            slots[k.schedule.slot[position]] = position
        if layer_id in ids:
            position = ids.index(layer_id)
            assert slots[k.schedule.slot[position]] == position
            slots[k.schedule.slot[position]] = None
    assert not any(slot is not None for slot in slots)


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


@given(planned(), st.integers(1, 3), st.randoms(use_true_random=False))
def test_every_rank_reads_the_right_layer_however_late_or_early_it_arrives(case, forwards, chance):
    """Every rank's memory, replayed: a moving weight may land at its start or at its wait."""
    plan, s = case
    ids, slot = s.series.layer_ids, s.schedule.slot
    ranks = range(min(plan.group_size, 6))
    for _ in range(forwards):
        slots = [["poison"] * s.schedule.num_slots for _ in ranks]
        late: set[tuple[int, int]] = set()
        for boundary in range(len(ids)):
            for position in s.schedule.launches[boundary]:
                for rank in ranks:
                    if s.is_resident(position, rank):
                        continue
                    if chance.random() < 0.5:
                        slots[rank][slot[position]] = ids[position]
                    else:
                        late.add((rank, position))
            for rank in ranks:
                if s.is_resident(boundary, rank):
                    continue
                if (rank, boundary) in late:
                    late.remove((rank, boundary))
                    slots[rank][slot[boundary]] = ids[boundary]
                assert slots[rank][slot[boundary]] == ids[boundary]
        assert not late, "in flight between two forwards"


@given(planned())
def test_a_plan_says_the_same_both_ways_round(case):
    """`launches` and `launch_at` are one relation; every table has an entry a position."""
    plan, s = case
    n = len(s.series)
    schedule = s.schedule
    assert [len(table) for table in (s.owner, schedule.slot, schedule.launch_at)] == [n] * 3
    pairs = [(q, p) for p, started in enumerate(schedule.launches) for q in started]
    assert pairs == list(enumerate(schedule.launch_at))
    assert set(schedule.slot) == set(range(schedule.num_slots))
    assert schedule.launches[0] == tuple(range(plan.prefetch_step + 1))
    assert all(len(started) <= 1 for started in schedule.launches[1:])


@given(st.integers(1, 100), st.integers(1, 8), st.integers(2, 16), st.integers(1, 4))
def test_owners_do_not_depend_on_where_pipeline_stages_begin(layers, pp, group_size, stride):
    owners = {}
    for stage in stage_layers(layers, min(pp, layers)):
        ids = tuple(i for i in stage if i % stride == 0)
        if ids:
            (s,) = build_plan([Series("a", ids, 1)], group_size, 0, layer_stride=stride).series
            assert s.schedule.slot == (0,) * len(ids)
            owners |= dict(zip(ids, s.owner, strict=True))
    assert owners == {i: i // stride % group_size for i in range(0, layers, stride)}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(2, 5))
def test_series_share_nothing_but_the_sum(counts, group_size):
    """A plan of several series is the plans of each; only `saved_bytes` adds them."""
    apart = [
        Series(f"s{i}", tuple(range(i, i + n)), layer_bytes=10**i) for i, n in enumerate(counts)
    ]
    plan = build_plan(apart, group_size, 0)
    alone = [build_plan([s], group_size, 0) for s in apart]
    assert plan.series == tuple(one.series[0] for one in alone)
    assert plan.saved_bytes == tuple(
        sum(saved) for saved in zip(*(one.saved_bytes for one in alone), strict=True)
    )


def series(count: int = 5, name: str = "o_proj", layer_bytes: int = 10) -> Series:
    return Series(name, tuple(range(count)), layer_bytes)


def test_five_layers_on_two_ranks_with_two_slots():
    """Written out, so that a reader can check it by hand."""
    (s,) = build_plan([series(5)], 2, 1).series
    assert s.owner == (0, 1, 0, 1, 0)
    assert s.schedule.slot == (0, 1, 0, 1, 0)
    assert s.schedule.launch_at == (0, 0, 1, 2, 3)
    assert s.schedule.launches == ((0, 1), (2,), (3,), (4,), ())
    assert (s.ledger.replicated_bytes, s.ledger.slot_bytes) == (50, 20)
    assert (s.ledger.resident_bytes, s.ledger.saved_bytes) == ((30, 20), (0, 10))


def test_without_prefetch_a_layer_moves_at_its_own_boundary():
    (s,) = build_plan([series(3)], 2, 0).series
    assert s.schedule.launches == ((0,), (1,), (2,))
    assert s.schedule.slot == (0, 0, 0)


def test_sixty_one_layers_on_eight_ranks():
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


def test_a_step_too_large_for_what_is_left_says_what_took_it():
    kept = Series("o_proj", (2, 4), 10, kept_layer=0)
    with pytest.raises(PlanError) as error:
        build_plan([kept], 2, 2, layer_stride=2)
    assert str(error.value) == (
        "series 'o_proj' has 2 layers left with layer_stride 2 and keep_first; prefetch_step 2 "
        "needs at least 3: lower layer_stride, or prefetch_step to at most 1, do without "
        "keep_first or leave 'o_proj' out"
    )


@pytest.mark.parametrize(("count", "step"), [(1, 0), (2, 0), (2, 1)])
def test_short_series_are_legal_and_may_save_less_than_nothing(count, step):
    plan = build_plan([series(count)], 2, step)
    assert min(plan.saved_bytes) <= 0


def test_a_group_of_one_is_refused_but_for_the_control():
    with pytest.raises(PlanError) as error:
        build_plan([series(), series(name="q_b_proj")], 1, 1)
    assert str(error.value) == (
        "series 'o_proj', 'q_b_proj': a group of one rank has nobody to share with; "
        "layer sharding needs at least two ranks that hold the same copy (data or context "
        "parallel ranks, or tensor-parallel ranks for a linear that is not split, or before which "
        "they exchange tokens: token_exchange)"
    )
    assert build_plan([series()], 1, 1, "replicated").saved_bytes == (0,)


def test_the_control_runs_whatever_the_step():
    """It moves nothing, so that no step is too large and no group too small."""
    (s,) = build_plan([series(1)], 1, 64, "replicated").series
    assert s.schedule.num_slots == 0
    assert s.schedule.launches == ((),)


def test_one_series_that_is_too_short_is_the_one_named():
    with pytest.raises(PlanError, match="series 'short' has 2 layers; prefetch_step 3 needs at le"):
        build_plan([series(5), series(2, name="short")], 2, 3)
