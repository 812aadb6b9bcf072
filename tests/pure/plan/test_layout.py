"""Groups of equal copies, and the layers of pipeline stages."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_layershard.errors import PlanError
from vllm_layershard.plan import ParallelLayout, stage_layers

"""How long an example takes says how busy the machine is."""

SIZES = st.integers(1, 4)


LAYOUTS = st.builds(
    ParallelLayout,
    tp=SIZES,
    dp=SIZES,
    pcp=SIZES,
    pp=SIZES,
    dp_lockstep=st.booleans(),
    one_sided=st.booleans(),
    dcp=SIZES,
)


@given(LAYOUTS, st.data())
def test_groups_are_the_ranks_that_differ_only_where_copies_are_equal(layout, data):
    """Against coordinates counted out in vLLM's order, DP x PP x PCP x TP."""
    axes = (range(layout.dp), range(layout.pp), range(layout.pcp), range(layout.tp))
    expected: dict[tuple[int | None, ...], list[int]] = {}
    kind = tp_replicated, tp_copies = data.draw(st.sampled_from(layout.kinds))
    for rank, (dp, pp, _, tp) in enumerate(itertools.product(*axes)):
        shared = layout.dp_lockstep or layout.one_sided
        apart = (pp, None if shared else dp, None if tp_replicated else tp // tp_copies)
        expected.setdefault(apart, []).append(rank)
        assert layout.stage_of(rank) == pp
    groups = layout.groups(*kind)
    assert sorted(groups) == sorted(map(tuple, expected.values()))
    assert {len(group) for group in groups} == {layout.group_size(*kind)}
    assert sorted(rank for group in groups for rank in group) == list(range(layout.world_size))


def test_two_stages_of_two_by_two_ranks():
    """Written out: DP x PP x TP of two each, as vLLM numbers them."""
    layout = ParallelLayout(tp=2, dp=2, pp=2)
    assert layout.groups(tp_replicated=False) == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert layout.groups(tp_replicated=True) == ((0, 1, 4, 5), (2, 3, 6, 7))
    assert [layout.stage_of(rank) for rank in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]


def test_two_of_each_dimension():
    """Written out: DP x PP x PCP x TP of two each. Elsewhere the stages were left out of it."""
    layout = ParallelLayout(tp=2, dp=2, pcp=2, pp=2)
    assert layout.kinds == ((False, 1), (True, 1))
    assert layout.groups(tp_replicated=False) == (
        *((0, 2, 8, 10), (1, 3, 9, 11)),
        *((4, 6, 12, 14), (5, 7, 13, 15)),
    )
    assert layout.groups(tp_replicated=True) == (
        (0, 1, 2, 3, 8, 9, 10, 11),
        (4, 5, 6, 7, 12, 13, 14, 15),
    )
    assert [layout.stage_of(rank) for rank in range(16)] == [*[0] * 4, *[1] * 4] * 2


def test_neighbours_of_a_decode_context_group_hold_the_same_queries():
    """Written out: DP 2 x PP 2 x TP 4, of which DCP takes two neighbours."""
    layout = ParallelLayout(tp=4, dp=2, pp=2, dcp=2)
    assert layout.world_size == 16
    assert layout.kinds == ((False, 1), (False, 2), (True, 1))
    assert layout.groups(False, 2) == ((0, 1, 8, 9), (2, 3, 10, 11), (4, 5, 12, 13), (6, 7, 14, 15))
    assert layout.groups(False) == tuple((rank, rank + 8) for rank in range(8))
    assert layout.groups(True) == ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))
    assert [layout.group_size(*kind) for kind in layout.kinds] == [2, 4, 8]


@pytest.mark.parametrize("sizes", [{"pcp": 2, "tp": 2, "dcp": 2}, {"pcp": 2, "tp": 2, "dcp": 4}])
def test_decode_context_over_prefill_context_makes_no_kind_of_its_own(sizes):
    """It spans PCP first, over which all copies are equal, and vLLM builds no such linear then."""
    layout = ParallelLayout(**sizes)
    assert layout.kinds == ((False, 1), (True, 1))
    assert layout.groups(False) == ((0, 2), (1, 3))


def test_replicas_of_a_dense_model_share_within_themselves_only():
    dense = ParallelLayout(dp=2, pcp=2, dp_lockstep=False)
    assert dense.groups(tp_replicated=False) == ((0, 1), (2, 3))
    dense.require_peers()
    with pytest.raises(PlanError, match="engines of their own") as error:
        ParallelLayout(dp=2, dp_lockstep=False).require_peers()
    assert str(error.value).endswith("use transport 'pull' or 'auto'")
    with pytest.raises(PlanError, match="nobody to share with"):
        ParallelLayout(pp=2).require_peers()


def test_replicas_of_a_dense_model_share_with_each_other_where_they_fetch_by_themselves():
    dense = ParallelLayout(tp=2, dp=2, dp_lockstep=False, one_sided=True)
    assert dense.groups(tp_replicated=False) == ((0, 2), (1, 3))
    assert dense.groups(tp_replicated=True) == ((0, 1, 2, 3),)
    dense.require_peers()
    with pytest.raises(PlanError, match="nobody to share with"):
        ParallelLayout(pp=2, dp_lockstep=False, one_sided=True).require_peers()


@given(LAYOUTS)
def test_ranks_are_in_lockstep_unless_replicas_of_a_dense_model(layout):
    """And to fetch by oneself changes no group of ranks that share anyway."""
    assert layout.in_lockstep == (layout.dp_lockstep or layout.dp == 1)
    if layout.in_lockstep:
        for tp_replicated in (False, True):
            other = replace(layout, one_sided=not layout.one_sided)
            assert layout.groups(tp_replicated) == other.groups(tp_replicated)


@pytest.mark.parametrize("name", ["tp", "dp", "pcp", "pp", "dcp"])
@pytest.mark.parametrize("size", [0, -1])
def test_a_parallel_size_below_one_is_refused(name, size):
    with pytest.raises(PlanError) as error:
        ParallelLayout(**{name: size})
    assert str(error.value) == f"{name} = {size}: a parallel size is at least 1"


@given(st.integers(1, 130), st.integers(1, 16))
def test_stages_cover_the_layers_in_order(num_layers, pp):
    if pp > num_layers:
        with pytest.raises(PlanError, match="at most that many stages"):
            stage_layers(num_layers, pp)
        return
    stages = stage_layers(num_layers, pp)
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))
    assert len(stages) == pp
    assert max(map(len, stages)) - min(map(len, stages)) <= 1
    assert len(stages[-1]) == num_layers // pp


@pytest.mark.parametrize(
    ("num_layers", "pp", "sizes"),
    [(61, 4, [15, 15, 16, 15]), (62, 4, [15, 16, 16, 15]), (7, 2, [4, 3]), (3, 3, [1, 1, 1])],
)
def test_the_remainder_goes_to_the_stages_before_the_last(num_layers, pp, sizes):
    assert [len(stage) for stage in stage_layers(num_layers, pp)] == sizes


@pytest.mark.parametrize("num_layers", [1, 4])
def test_one_stage_more_than_layers_is_refused(num_layers):
    with pytest.raises(PlanError, match=f"a model of {num_layers} layers has at most that many"):
        stage_layers(num_layers, num_layers + 1)


def test_stages_are_vllms_own(monkeypatch):
    get_pp_indices = pytest.importorskip("vllm.distributed.utils").get_pp_indices
    monkeypatch.delenv("VLLM_PP_LAYER_PARTITION", raising=False)
    for num_layers, pp in itertools.product((9, 27, 61, 78, 94), (1, 2, 3, 4, 8)):
        stages = [(s.start, s.stop) for s in stage_layers(num_layers, pp)]
        assert stages == [get_pp_indices(num_layers, rank, pp) for rank in range(pp)]
