"""Who stores what: stripes, the ledger of striped layers, and how weights then move."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import ConfigError, PlanError
from vllm_layershard.models import Deployment, read_model, shard_model
from vllm_layershard.plan import NO_RANK, ParallelLayout, Series, build_plan
from vllm_layershard.plan.placement import stripes

"""How long an example takes says how busy the machine is."""

UNIT = 256
SIZES = st.integers(1, 100_000) | st.integers(1, 10**12)
RANKS = st.integers(2, 64)


@given(SIZES, RANKS)
def test_stripes_are_a_layer_cut_at_units_into_equal_parts(layer_bytes, group_size):
    parts = stripes(layer_bytes, group_size)
    assert len(parts) == group_size
    assert (parts[0][0], parts[-1][1]) == (0, layer_bytes), "they cover the layer"
    assert all(end == start for (_, end), (start, _) in pairwise(parts)), "and do not overlap"
    assert all(start % UNIT == 0 or start == layer_bytes for start, _ in parts)
    lengths = [end - start for start, end in parts]
    assert min(lengths) >= 0
    assert max(lengths) - min(lengths) <= UNIT


def test_stripes_of_a_layer_that_is_no_multiple():
    """Written out: 1,000 bytes are four units, the last one cut."""
    assert stripes(1000, 2) == ((0, 512), (512, 1000))
    assert stripes(1000, 3) == ((0, 256), (256, 512), (512, 1000))
    assert stripes(300, 4) == ((0, 0), (0, 256), (256, 256), (256, 300))


@st.composite
def striped(draw):
    """A series that may start anywhere and have gaps, striped over a group."""
    stride = draw(st.integers(1, 3))
    start, count = draw(st.integers(0, 61)), draw(st.integers(1, 70))
    layer_ids = tuple((start + i) * stride for i in range(count))
    series = Series("o_proj", layer_ids, draw(SIZES), draw(st.integers(0, 99)))
    step = draw(st.integers(0, count - 1))
    plan = build_plan([series], draw(RANKS), step, "striped", stride)
    return plan, plan.series[0]


@given(striped())
def test_a_striped_series_moves_like_another_and_is_nobodys(case):
    plan, s = case
    other = build_plan(
        [s.series], plan.group_size, plan.prefetch_step, layer_stride=plan.layer_stride
    )
    assert s.schedule == other.series[0].schedule
    assert s.is_striped
    assert not other.series[0].is_striped
    assert set(s.owner) == {NO_RANK}
    for rank in range(plan.group_size):
        assert s.owned_layers(rank) == ()
        assert not any(s.is_resident(p, rank) for p in range(len(s.series)))
    assert s.loader == tuple(
        i // plan.layer_stride % plan.group_size for i in s.series.layer_ids
    ), "one rank reads a layer from the checkpoint for all"


@given(striped())
def test_the_ledger_of_stripes_adds_up_and_no_rank_binds(case):
    plan, s = case
    ledger, n, layer = s.ledger, len(s.series), s.series.layer_bytes
    assert ledger.replicated_bytes == n * layer == sum(ledger.resident_bytes)
    assert ledger.slot_bytes == (plan.prefetch_step + 1) * layer
    for rank, (start, end) in enumerate(s.stripes):
        assert ledger.resident_bytes[rank] == n * (end - start)
        held = ledger.resident_bytes[rank] + ledger.slot_bytes
        assert ledger.saved_bytes[rank] == ledger.replicated_bytes - held
    assert max(ledger.saved_bytes) - min(ledger.saved_bytes) <= n * UNIT
    assert plan.saved_bytes == ledger.saved_bytes


@given(striped())
def test_the_rank_that_saves_least_saves_no_less_than_with_whole_layers(case):
    """Beyond a unit a layer: stripes are even, whole layers are where K divides their number."""
    plan, s = case
    whole = build_plan(
        [s.series], plan.group_size, plan.prefetch_step, layer_stride=plan.layer_stride
    )
    assert min(plan.saved_bytes) >= min(whole.saved_bytes) - len(s.series) * UNIT


@pytest.mark.parametrize(
    ("placement", "transport", "together", "apart"),
    [
        ("round_robin", "auto", "broadcast", "pull"),
        ("round_robin", "pull", "pull", "pull"),
        ("round_robin", "broadcast", "broadcast", "broadcast"),
        ("striped", "auto", "pull", "pull"),
        ("striped", "pull", "pull", "pull"),
    ],
)
def test_auto_broadcasts_whole_layers_among_ranks_in_lockstep(
    placement, transport, together, apart
):
    config = LayerShardConfig(layers=("o_proj",), placement=placement, transport=transport)
    assert config.transport_in(lockstep=True) == together
    assert config.transport_in(lockstep=False) == apart


def test_a_broadcast_of_stripes_is_refused():
    with pytest.raises(ConfigError) as error:
        LayerShardConfig(layers=("o_proj",), placement="striped", transport="broadcast")
    assert str(error.value) == (
        "layer_sharding.placement = 'striped': a broadcast moves whole layers from one rank; use "
        "transport 'pull' or 'auto'"
    )


def sharding(model: str, layout: ParallelLayout, **options: str):
    config = LayerShardConfig(layers=("o_proj",), **options)
    return shard_model(read_model(model), Deployment(layout), config)


def test_replicas_of_a_dense_model_pull_from_each_other():
    found = sharding("Qwen3-32B", ParallelLayout(dp=4, tp=2))
    assert found.transport_names == ("pull",)
    (group,) = found.groups
    assert group.ranks == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert min(found.saved_bytes) > 0
    assert sharding("DeepSeek-V3", ParallelLayout(dp=4)).transport_names == ("broadcast",)
    assert sharding("DeepSeek-V3", ParallelLayout(dp=4), placement="striped").transport_names == (
        "pull",
    )
    assert sharding("Qwen3-32B", ParallelLayout(pcp=4)).transport_names == ("broadcast",)
    assert sharding("Qwen3-32B", ParallelLayout(dp=4), placement="replicated").transport_names == ()


def test_replicas_of_a_dense_model_cannot_broadcast():
    with pytest.raises(PlanError) as error:
        sharding("Qwen3-32B", ParallelLayout(dp=4), transport="broadcast")
    assert str(error.value) == (
        "layer_sharding: the 4 data-parallel ranks of a dense model are engines of their own, "
        "which never wait for each other, and the broadcast transport needs lockstep; use "
        "transport 'pull' or 'auto'"
    )
    within = sharding("Qwen3-32B", ParallelLayout(dp=2, pcp=2), transport="broadcast")
    assert within.groups[0].ranks == ((0, 1), (2, 3)), "within each replica they can"
