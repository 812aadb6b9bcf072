"""What a forward moves: a comparison of numbers that every rank has, and layouts without them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_layershard.config import LayerShardConfig, Move
from vllm_layershard.errors import PlanError
from vllm_layershard.plan import ParallelLayout, build_plan, sharing_layout
from vllm_layershard.plan.move import counts_in_group, move_rule, require_agreed_counts
from vllm_layershard.plan.series import Series


def moving(move: Move, start: int | None = None) -> LayerShardConfig:
    return LayerShardConfig(("o_proj",), move=move, move_weights_from=start)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (moving("weights"), [True, True, True, True]),
        (moving("activations"), [False, False, False, False]),
        (moving("auto", 8), [False, False, True, True]),
        (moving("auto", 1), [False, True, True, True]),
    ],
)
def test_the_largest_count_decides_and_equality_moves_weights(config, expected):
    rule = move_rule(config)
    loads = [(0, 0), (7, 1), (1, 8), (300, 0)]
    assert [rule.moves_weights(load) for load in loads] == expected


@given(st.lists(st.integers(0, 300), min_size=1, max_size=8), st.integers(1, 301), st.randoms())
def test_no_rank_sees_it_otherwise(counts, start, draw):
    """Whatever the order in which a rank has the others."""
    rule, shuffled = move_rule(moving("auto", start)), [*counts]
    draw.shuffle(shuffled)
    assert rule.moves_weights(counts) == rule.moves_weights(shuffled)
    assert rule.moves_weights(counts) == any(count >= start for count in counts)


def test_counts_of_a_group_are_those_of_its_engines():
    layout = ParallelLayout(dp=2, pp=2, tp=2)
    stages = layout.groups(tp_replicated=True)
    assert stages == ((0, 1, 4, 5), (2, 3, 6, 7))
    for ranks in stages:
        assert counts_in_group(layout, ranks, [5, 9]) == (5, 5, 9, 9)
        assert counts_in_group(layout, [rank + 8 for rank in ranks], [5, 9]) == (5, 5, 9, 9)
    for ranks in layout.groups(tp_replicated=False):
        assert counts_in_group(layout, ranks, [5, 9]) == (5, 9)


def layout_for(config: LayerShardConfig, is_moe: bool, **sizes: int) -> ParallelLayout:
    return sharing_layout(**{"tp": 1, "dp": 1, "pcp": 1, "pp": 1, **sizes}, is_moe=is_moe,
                          config=config)  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "is_moe", "said"),
    [
        ({"dp": 2}, False, "the 2 data-parallel ranks of a dense model are engines of their own"),
        ({"dp": 2, "tp": 2}, False, "engines of their own, which never wait for each other"),
        ({"dp": 2, "pcp": 2}, True, "prefill-context-parallel ranks have token counts of their"),
        ({"pcp": 2}, False, "prefill-context-parallel ranks have token counts of their own"),
        ({"dp": 2}, True, None),
        ({"tp": 2}, False, None),
        ({"dp": 2, "tp": 2, "pp": 2}, True, None),
    ],
)
def test_ranks_that_do_not_know_each_others_tokens_are_refused(sizes, is_moe, said):
    for config in (moving("activations"), moving("auto", 8)):
        layout = layout_for(config, is_moe, **sizes)
        if said is None:
            require_agreed_counts(layout, config)
            continue
        with pytest.raises(PlanError) as error:
            require_agreed_counts(layout, config)
        assert said in str(error.value)
        assert str(error.value).startswith(f"layer_sharding.move = {config.move!r}: ")
    require_agreed_counts(layout_for(moving("weights"), is_moe, **sizes), moving("weights"))


def test_bytes_that_come_to_a_rank_are_counted_once_in_a_group():
    series = [Series("o_proj", tuple(range(5)), 12)]
    for placement, moved in (
        ("round_robin", 5 * 12 * 2),
        ("striped", 5 * 12 * 2),
        ("replicated", 0),
    ):
        (plan,) = build_plan(series, 3, 1, placement).series
        arriving = [plan.arriving_bytes(p, rank) for p in range(5) for rank in range(3)]
        assert sum(arriving) == moved
