"""Sharing: lockstep and movement follow from the sizes, the experts and the transport."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_layershard.config import LayerShardConfig, Placement, TransportChoice
from vllm_layershard.errors import PlanError
from vllm_layershard.plan import ParallelLayout, engines_that_share, sharing_layout

"""How long an example takes says how busy the machine is."""

CONFIGS = st.sampled_from(
    [
        LayerShardConfig(("o_proj",), placement=placement, transport=transport)
        for placement in get_args(Placement)
        for transport in get_args(TransportChoice)
        if (placement, transport) != ("striped", "broadcast")
    ]
)
SIZES = st.fixed_dictionaries({name: st.integers(1, 4) for name in ("tp", "dp", "pcp", "pp")})


@given(SIZES, st.booleans(), CONFIGS)
def test_the_layout_is_born_with_its_movement(sizes, is_moe, config):
    layout = sharing_layout(**sizes, is_moe=is_moe, config=config)
    assert layout.in_lockstep == (is_moe or sizes["dp"] == 1)
    transport = config.transport_in(lockstep=layout.in_lockstep)
    assert {layout.transport_of(size) for size in range(1, 5)} == {transport}
    assert layout.one_sided == (transport == "pull")
    assert layout == ParallelLayout(**sizes, dp_lockstep=is_moe, one_sided=layout.one_sided)


@pytest.mark.parametrize(
    ("dp", "is_moe", "options", "lockstep", "movement", "shares"),
    [
        (8, True, {}, True, "broadcast", True),
        (8, True, {"placement": "striped"}, True, "pull", True),
        (8, True, {"transport": "pull"}, True, "pull", True),
        (8, False, {}, False, "pull", True),
        (8, False, {"transport": "broadcast"}, False, "broadcast", False),
        (1, False, {}, True, "broadcast", False),
        (1, False, {"transport": "pull"}, True, "pull", True),
    ],
)
def test_cases_written_out(dp, is_moe, options, lockstep, movement, shares):
    config = LayerShardConfig(("o_proj",), **options)
    layout = sharing_layout(tp=2, dp=dp, pcp=1, pp=1, is_moe=is_moe, config=config)
    assert (layout.in_lockstep, layout.transport_of(2), layout.dp_shares) == (
        lockstep,
        movement,
        shares,
    )


@given(SIZES, st.booleans(), CONFIGS)
def test_engines_that_do_not_share_are_planned_one_by_one(sizes, is_moe, config):
    layout = sharing_layout(**sizes, is_moe=is_moe, config=config)
    together = engines_that_share(layout)
    assert together == (layout if layout.dp_shares else replace(layout, dp=1))
    for tp_replicated in (False, True):
        assert together.group_size(tp_replicated) == layout.group_size(tp_replicated)
        assert set(together.groups(tp_replicated)) <= set(layout.groups(tp_replicated))


def test_a_size_below_one_is_refused():
    config = LayerShardConfig(("o_proj",))
    with pytest.raises(PlanError, match="tp = 0: a parallel size is at least 1"):
        sharing_layout(tp=0, dp=1, pcp=1, pp=1, is_moe=True, config=config)


EXCHANGING = st.builds(
    lambda config: replace(config, token_exchange=config.layers),
    CONFIGS,
)


@given(SIZES, st.booleans(), EXCHANGING)
def test_engines_that_exchange_tokens_share_each_within_itself(sizes, is_moe, config):
    """The replicas of a dense model alone: ranks in lockstep share as they did."""
    layout = sharing_layout(**sizes, is_moe=is_moe, config=config)
    without = sharing_layout(**sizes, is_moe=is_moe, config=replace(config, token_exchange=()))
    if is_moe or sizes["dp"] == 1 or sizes["tp"] == 1:
        assert layout == without
        return
    assert not layout.dp_shares
    assert layout.in_lockstep
    assert layout.transport_of(sizes["tp"]) == config.transport_in(lockstep=True)
    engine = engines_that_share(layout)
    assert engine.dp == 1
    assert engine.in_lockstep
    assert engine.group_size(tp_replicated=True) == sizes["pcp"] * sizes["tp"]
    layout.require_peers()


@pytest.mark.parametrize(
    ("is_moe", "groups"),
    [
        (True, ((0, 1, 4, 5), (2, 3, 6, 7))),
        (False, ((0, 1), (2, 3), (4, 5), (6, 7))),
    ],
)
@pytest.mark.parametrize("options", [{}, {"transport": "pull"}, {"placement": "striped"}])
def test_whole_linears_of_two_stages_of_two_by_two_ranks_written_out(is_moe, options, groups):
    """As 4458 had them wrong: DP x PP x TP of two each, in vLLM's order."""
    config = LayerShardConfig(("o_proj",), token_exchange=("o_proj",), **options)
    layout = sharing_layout(tp=2, dp=2, pcp=1, pp=2, is_moe=is_moe, config=config)
    assert layout.groups(tp_replicated=True) == groups
    assert [layout.stage_of(rank) for rank in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("sizes", "options", "transport"),
    [
        ({"dp": 2}, {}, {False: "pull", True: "pull"}),
        ({"tp": 2}, {}, {True: "pull"}),
        ({"dp": 2, "pp": 4}, {}, {False: "pull", True: "pull"}),
        ({"dp": 2}, {"transport": "broadcast"}, {False: "broadcast", True: "broadcast"}),
        ({"dp": 2}, {"placement": "replicated"}, {False: "broadcast", True: "broadcast"}),
        ({"dp": 3}, {}, {False: "broadcast", True: "broadcast"}),
        ({"dp": 3}, {"placement": "striped"}, {False: "pull", True: "pull"}),
        ({"tp": 2, "dp": 2}, {}, {False: "pull", True: "broadcast"}),
        ({"tp": 4, "dp": 2, "pcp": 1}, {}, {False: "pull", True: "broadcast"}),
        ({"tp": 2, "dp": 2}, {"transport": "broadcast"}, {False: "broadcast", True: "broadcast"}),
        ({"tp": 2, "dp": 2}, {"transport": "pull"}, {False: "pull", True: "pull"}),
        ({"tp": 2, "dp": 2}, {"placement": "striped"}, {False: "pull", True: "pull"}),
    ],
)
def test_each_group_of_two_gpus_that_reach_each_other_pulls(sizes, options, transport):
    """Keyed by `tp_replicated`; a group of one rank moves nothing, and is left out."""
    config = LayerShardConfig(("o_proj",), **options)
    sizes = {"tp": 1, "dp": 1, "pcp": 1, "pp": 1} | sizes
    layout = sharing_layout(**sizes, is_moe=True, config=config, gpus_reach=True)
    group_sizes = {whole: layout.group_size(whole) for whole in (False, True)}
    assert {
        whole: layout.transport_of(size) for whole, size in group_sizes.items() if size > 1
    } == transport
    without = sharing_layout(**sizes, is_moe=True, config=config)
    assert replace(layout, pairs_pull=False) == without, "nothing else depends on it"
    if options.get("placement") != "striped" and options.get("transport") != "pull":
        assert {without.transport_of(size) for size in group_sizes.values()} == {"broadcast"}
