"""GroupPlans: what is found in a stage, what is refused, and what processing changes."""

from __future__ import annotations

import pytest

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import PlanError
from vllm_layershard.plan import (
    EVERY_RANK,
    Linear,
    ParallelLayout,
    TensorSpec,
    build_plan,
    group_plans,
    layers_of,
    require_layers,
    select,
)
from vllm_layershard.plan.ledger import Ledger
from vllm_layershard.plan.schedule import Schedule

PP2_DP2_TP2 = ParallelLayout(tp=2, dp=2, pp=2)


def linear(name: str, layer_id: int, nbytes: int, *, whole: bool = False) -> Linear:
    spec = TensorSpec("weight", (nbytes,), "uint8", nbytes)
    return Linear(f"model.layers.{layer_id}.{name}", layer_id, whole, (spec,))


SECOND_STAGE = [
    linear(name, i, nbytes, whole=whole)
    for i in (4, 5, 6, 7)
    for name, nbytes, whole in (("attn.a", 10, True), ("attn.b", 20, False), ("mlp.c", 30, False))
]


def test_each_kind_of_group_has_one_plan_for_all_its_series():
    config = LayerShardConfig(("a", "b", "c"), keep_first=True)
    split, whole = group_plans(select(SECOND_STAGE, config.layers), config, PP2_DP2_TP2, 1)
    assert (split.pp_stage, split.tp_replicated, split.ranks) == (1, False, ((2, 6), (3, 7)))
    assert (whole.pp_stage, whole.tp_replicated, whole.ranks) == (1, True, ((2, 3, 6, 7),))
    assert [s.series.name for s in split.plan.series] == ["b", "c"]
    assert split.prefixes == (
        tuple(f"model.layers.{i}.attn.b" for i in (5, 6, 7)),
        tuple(f"model.layers.{i}.mlp.c" for i in (5, 6, 7)),
    )
    assert whole.plan == build_plan([whole.plan.series[0].series], 4, 1)
    assert whole.plan.series[0].series.kept_layer == 4


def test_what_a_decode_context_group_holds_alike_has_a_plan_of_its_own():
    """TP 4 and DCP 2: a query projection in two parts, an output in four, a latent one whole."""
    spec = TensorSpec("weight", (8,), "uint8", 8)
    linears = [
        Linear(f"model.layers.{i}.{name}", i, whole, (spec,), copies)
        for i in range(3)
        for name, whole, copies in (("o_proj", False, 1), ("q_b_proj", False, 2), ("a", True, 1))
    ]
    config = LayerShardConfig(("o_proj", "q_b_proj", "a"))
    layout = ParallelLayout(tp=4, dp=2, dcp=2)
    plans = group_plans(select(linears, config.layers), config, layout)
    assert [(p.tp_replicated, p.tp_copies, p.plan.group_size) for p in plans] == [
        (False, 1, 2),
        (False, 2, 4),
        (True, 1, 8),
    ]
    assert plans[1].ranks == ((0, 1, 4, 5), (2, 3, 6, 7))
    assert [s.series.name for p in plans for s in p.plan.series] == ["o_proj", "q_b_proj", "a"]
    without = Linear("model.layers.0.q_b_proj", 0, False, (spec,))
    others = [without._replace(prefix=x.prefix, layer_id=x.layer_id) for x in linears[1::3]]
    (parted,) = group_plans({"q_b_proj": others}, config, ParallelLayout(tp=4, dp=4))
    assert parted.plan.digest() == plans[1].plan.digest()  # a plan knows K, not over what


def odd(layers: dict[int, int], config: LayerShardConfig, dp: int = 2):
    """The plan of `b`, by the bytes of its layers."""
    linears = [linear("attn.b", layer_id, nbytes) for layer_id, nbytes in layers.items()]
    return group_plans(select(linears, config.layers), config, ParallelLayout(dp=dp))


@pytest.mark.parametrize("placement", ["round_robin", "striped"])
@pytest.mark.parametrize("at", [0, 3, 7])
def test_one_layer_of_another_layout_stays_whole_on_every_rank(at, placement):
    """Whatever its place. It moves nothing, and the plan says so."""
    config = LayerShardConfig(("b",), prefetch_step=3, placement=placement)
    (group,) = odd(dict.fromkeys(range(8), 20) | {at: 40}, config)
    one, others = sorted(group.plan.series, key=lambda s: len(s.series))
    assert (one.series.name, one.series.layer_ids) == (f"b@{at}", (at,))
    assert not one.moves
    assert one.owner == (EVERY_RANK,)
    assert one.owner_of_layer == {at: EVERY_RANK}
    assert one.schedule == Schedule(0, (), (), ((),))
    assert one.ledger == Ledger(40, (40, 40), 0, (0, 0))
    assert [one.owned_layers(rank) for rank in range(2)] == [(at,), (at,)]
    assert others.moves
    assert others == build_plan([others.series], 2, 3, placement).series[0]
    assert group.linears[group.plan.series.index(one)][0].layer_id == at
    processed = group.as_processed(
        [[linear("attn.b", at, 36)], group.linears[1]]
        if not at
        else [group.linears[0], [linear("attn.b", at, 36)]]
    )
    assert [s.moves for s in processed.plan.series] == [s.moves for s in group.plan.series]


def test_several_odd_layers_each_stay_whole():
    (group,) = odd(dict.fromkeys(range(8), 20) | {0: 40, 7: 60}, LayerShardConfig(("b",)))
    assert [(s.series.name, s.moves) for s in group.plan.series] == [
        ("b@0", False),
        ("b@1", True),
        ("b@7", False),
    ]


def test_an_odd_layer_in_a_group_of_its_own_needs_nobody_to_share_with():
    """It is not split, and no other rank holds a copy of it: there is nothing to refuse."""
    linears = [linear("attn.b", i, 20, whole=i > 0) for i in range(4)]
    config = LayerShardConfig(("b",))
    split, whole = group_plans(select(linears, ["b"]), config, ParallelLayout(tp=2))
    assert [s.moves for s in split.plan.series] == [False]
    assert [s.moves for s in whole.plan.series] == [True]


def test_a_step_of_none_moves_an_odd_layer_as_ever():
    config = LayerShardConfig(("b",), prefetch_step=0)
    (group,) = odd(dict.fromkeys(range(8), 20) | {0: 40}, config)
    assert [s.moves for s in group.plan.series] == [True, True]
    assert [s.moves for s in group.plan.with_prefetch_step(1).series] == [False, True]


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("placement", ["round_robin", "striped"])
def test_an_odd_series_moves_only_where_its_slots_do_not_hold_all_of_it(step, number, placement):
    config = LayerShardConfig(("b",), prefetch_step=step, placement=placement)
    few = dict.fromkeys(range(number), 40)
    (group,) = odd(few | dict.fromkeys(range(number, number + 12), 20), config)
    short, others = group.plan.series
    assert short.moves == (number > step + 1)
    assert others.moves
    if not short.moves:
        assert short.owner == (EVERY_RANK,) * number
        assert short.ledger == Ledger(40 * number, (40 * number,) * 2, 0, (0, 0))
    document = group.plan.document()["series"][0]  # what ranks compare
    assert (document["owner"] == [EVERY_RANK] * number) == (number <= step + 1)


def test_a_series_that_is_short_beside_the_first_kept_layer_stays_whole():
    layers = dict.fromkeys(range(3), 40) | dict.fromkeys(range(3, 12), 20)
    (group,) = odd(layers, LayerShardConfig(("b",), keep_first=True))
    short, others = group.plan.series
    assert (short.series.kept_layer, short.series.layer_ids) == (0, (1, 2))
    assert (short.moves, others.moves) == (False, True)
    assert short.owner_of_layer == dict.fromkeys(range(3), EVERY_RANK)


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize("layers", [{0: 40, 1: 20}, {0: 40, 4: 20, 5: 60}, {0: 40, 3: 40, 5: 60}])
def test_a_name_of_which_no_step_would_share_a_layer_stays_whole(layers, step):
    """Nobody need have named it, nor given a step."""
    (group,) = odd(layers, LayerShardConfig(("b",), prefetch_step=step))
    assert not any(s.moves for s in group.plan.series)
    assert group.plan.saved_bytes == (0, 0)


@pytest.mark.parametrize(
    ("numbers", "given", "said"),
    [
        ((3, 2), {"prefetch_step": 2}, "'b@0' has 3 layers, and no other of 'b' has more; "),
        ((2, 4), {"prefetch_step": 9}, "needs at least 11: lower it to at most 2 or leave 'b' out"),
        ((4, 1), {"prefetch_step": 2, "keep_first": True}, "lower it to at most 1, do without ke"),
        ((6, 2), {"prefetch_step": 2, "layer_stride": 2}, "lower layer_stride, or it to at most"),
    ],
)
def test_a_name_whose_series_are_all_short_is_refused_where_that_can_be_helped(
    numbers, given, said
):
    """With a lower step the longest of them would move."""
    layers = dict.fromkeys(range(numbers[0]), 40)
    layers |= dict.fromkeys(range(numbers[0], sum(numbers)), 20)
    with pytest.raises(PlanError, match=said):
        odd(layers, LayerShardConfig(("b",), **given))
    if set(given) == {"prefetch_step"}:
        lower = LayerShardConfig(("b",), prefetch_step=max(numbers) - 2)
        assert any(s.moves for s in odd(layers, lower)[0].plan.series)


def test_a_stage_without_the_named_linears_has_no_plan():
    config = LayerShardConfig(("nowhere",))
    selected = select(SECOND_STAGE, config.layers)
    assert group_plans(selected, config, PP2_DP2_TP2, 1) == ()


def test_processing_changes_bytes_and_nothing_else():
    config = LayerShardConfig(("b",), placement="striped", layer_stride=2, prefetch_step=0)
    (loaded,) = group_plans(select(SECOND_STAGE, config.layers), config, PP2_DP2_TP2, 1)
    packed = [[linear("attn.b", x.layer_id, 12) for x in xs] for xs in loaded.linears]
    processed = loaded.as_processed(packed)
    assert processed.linears == tuple(map(tuple, packed))
    assert processed._replace(plan=loaded.plan, linears=loaded.linears) == loaded
    assert processed.plan.series[0].series.layer_bytes == 12
    assert processed.plan.series[0].schedule == loaded.plan.series[0].schedule
    assert processed.plan == build_plan([processed.plan.series[0].series], 2, 0, "striped", 2)
    assert loaded.plan.series[0].stripes == ((0, 0), (0, 20))
    assert loaded.plan.series[0].stripes_of(12) == processed.plan.series[0].stripes


def test_a_name_must_match_on_some_stage():
    here = layers_of(select(SECOND_STAGE, ["a", "d"]))
    there = {"a": set(), "d": {0, 3}}
    assert here == {"a": {4, 5, 6, 7}, "d": set()}
    require_layers([there, here], SECOND_STAGE, 1)
    require_layers([here, there], SECOND_STAGE, 3)
    with pytest.raises(PlanError, match=r"'d' matches no linear of this model; .*: attn\.a \(4 x"):
        require_layers([here, here], SECOND_STAGE, 1)
    with pytest.raises(PlanError, match="layer_stride 8 leaves no layer of 'a' to shard; lower it"):
        require_layers([there, here], SECOND_STAGE, 8)


def test_another_prefetch_step_of_the_same_series():
    config = LayerShardConfig(("b", "c"), layer_stride=1, placement="striped")
    (group,) = group_plans(select(SECOND_STAGE, config.layers), config, PP2_DP2_TP2, 1)
    series = [s.series for s in group.plan.series]
    assert group.plan.with_prefetch_step(3) == build_plan(series, 2, 3, "striped")
    assert group.plan.with_prefetch_step(1) == group.plan
    assert group.plan.with_prefetch_step(3).with_prefetch_step(1) == group.plan
    with pytest.raises(PlanError, match="prefetch_step 4 needs at least 5"):
        group.plan.with_prefetch_step(4)
