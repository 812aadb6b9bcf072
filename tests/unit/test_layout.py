"""Groups of equal copies, and the layers of pipeline stages."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_layershard.errors import PlanError
from vllm_layershard.plan import ParallelLayout, stage_layers

SIZES = st.integers(1, 4)


@given(st.builds(ParallelLayout, tp=SIZES, dp=SIZES, pcp=SIZES, pp=SIZES), st.booleans())
def test_groups_are_the_ranks_that_differ_only_where_copies_are_equal(layout, tp_replicated):
    """Against coordinates counted out in vLLM's order, DP x PP x PCP x TP."""
    axes = (range(layout.dp), range(layout.pp), range(layout.pcp), range(layout.tp))
    expected: dict[tuple[int, ...], list[int]] = {}
    for rank, (_, pp, _, tp) in enumerate(itertools.product(*axes)):
        expected.setdefault((pp,) if tp_replicated else (pp, tp), []).append(rank)
        assert layout.stage_of(rank) == pp
    groups = layout.groups(tp_replicated)
    assert sorted(groups) == sorted(map(tuple, expected.values()))
    assert {len(group) for group in groups} == {layout.group_size(tp_replicated)}
    assert sorted(rank for group in groups for rank in group) == list(range(layout.world_size))


def test_a_parallel_size_below_one_is_refused():
    with pytest.raises(PlanError, match="dp = 0: a parallel size is at least 1"):
        ParallelLayout(dp=0)


@given(st.integers(1, 130), st.integers(1, 16))
def test_stages_cover_the_layers_in_order(num_layers, pp):
    if pp > num_layers:
        with pytest.raises(PlanError, match="at most that many stages"):
            stage_layers(num_layers, pp)
        return
    stages = stage_layers(num_layers, pp)
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))


def test_stages_are_vllms_own(monkeypatch):
    get_pp_indices = pytest.importorskip("vllm.distributed.utils").get_pp_indices
    monkeypatch.delenv("VLLM_PP_LAYER_PARTITION", raising=False)
    for num_layers, pp in itertools.product((9, 27, 61, 78, 94), (1, 2, 3, 4, 8)):
        stages = [(s.start, s.stop) for s in stage_layers(num_layers, pp)]
        assert stages == [get_pp_indices(num_layers, rank, pp) for rank in range(pp)]
