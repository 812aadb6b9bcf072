"""What a rank takes of its node's shared memory: one copy of what it stores, in whole pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.models import Deployment, read_model, shard_model
from vllm_layershard.plan import ParallelLayout, Series, SharedNeed, build_plan, shared_need

PAGE = 4096


def plan_of(layer_bytes: int, layers: int, ranks: int, placement: str = "round_robin"):
    return build_plan([Series("o_proj", tuple(range(layers)), layer_bytes)], ranks, 1, placement)


def test_whole_layers_of_their_owner():
    plan = plan_of(5000, 5, 2)
    assert shared_need([(plan, 0)]) == SharedNeed(3 * 2 * PAGE, 3)
    assert shared_need([(plan, 1)]) == SharedNeed(2 * 2 * PAGE, 2)


def test_a_stripe_of_each_layer_and_none_where_it_is_empty():
    plan = plan_of(300, 5, 4, "striped")
    assert plan.series[0].stripes == ((0, 0), (0, 256), (256, 256), (256, 300))
    needs = [shared_need([(plan, rank)]) for rank in range(4)]
    assert needs == [SharedNeed(0, 0), SharedNeed(5 * PAGE, 5)] * 2


def test_what_is_replicated_takes_none_and_groups_add_up():
    assert shared_need([(plan_of(5000, 5, 2, "replicated"), 0)]) == SharedNeed(0, 0)
    both = [(plan_of(5000, 5, 2), 0), (plan_of(4096, 4, 3), 1)]
    assert shared_need(both) == SharedNeed(6 * PAGE + PAGE, 4)


@given(st.integers(1, 10**9), st.integers(2, 40), st.integers(2, 9),
       st.sampled_from(["round_robin", "striped"]))  # fmt: skip
def test_all_ranks_together_take_one_copy_and_less_than_a_page_more_a_piece(
    layer_bytes, layers, ranks, placement
):
    plan = plan_of(layer_bytes, layers, ranks, placement)
    needs = [shared_need([(plan, rank)]) for rank in range(ranks)]
    stored = sum(plan.series[0].ledger.resident_bytes)
    assert stored == layers * layer_bytes
    pieces = sum(need.pieces for need in needs)
    assert stored <= sum(need.nbytes for need in needs) < stored + pieces * PAGE


@pytest.mark.parametrize(
    ("model", "layout", "layers", "transport", "total", "most"),
    [
        # 64 layers of 83,886,080 bytes, eight a rank.
        ("Qwen3-32B", ParallelLayout(dp=8), ("o_proj",), "auto", 64 * 83886080, 8),
        # On a rank of each tensor-parallel half, 32 layers of half the bytes.
        ("Qwen3-32B", ParallelLayout(dp=2, tp=2), ("o_proj",), "auto", 64 * 83886080, 32),
        ("Qwen3-32B", ParallelLayout(tp=2, pcp=2), ("o_proj",), "broadcast", None, None),
    ],
)
def test_the_planner_adds_up_what_all_ranks_of_a_deployment_take(
    model, layout, layers, transport, total, most
):
    config = LayerShardConfig(layers=layers, transport=transport)
    needs = shard_model(read_model(model), Deployment(layout), config).shared_needs
    if total is None:
        assert needs == ()
        return
    assert len(needs) == layout.world_size
    assert sum(need.nbytes for need in needs) == total
    assert max(need.pieces for need in needs) == most
