"""FfnSplit: which ranks split a dense MLP, which part each holds, and what gives no groups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_layershard.errors import PlanError
from vllm_layershard.plan import Linear, ParallelLayout, TensorSpec
from vllm_layershard.plan.ffn import FfnSplit

TABLE = [
    (ParallelLayout(dp=2), 2, [(0, 1)], [0, 1]),
    (ParallelLayout(dp=4), 2, [(0, 1), (2, 3)], [0, 1, 0, 1]),
    (ParallelLayout(dp=4), 4, [(0, 1, 2, 3)], [0, 1, 2, 3]),
    (ParallelLayout(tp=2, dp=2), 2, [(0, 2), (1, 3)], [0, 2, 1, 3]),
    (ParallelLayout(dp=2, pp=2), 2, [(0, 2), (1, 3)], [0, 0, 1, 1]),
    (
        ParallelLayout(tp=2, dp=2, pp=2),
        2,
        [(0, 4), (1, 5), (2, 6), (3, 7)],
        [0, 2, 0, 2, 1, 3, 1, 3],
    ),
    (
        ParallelLayout(tp=2, dp=4),
        2,
        [(0, 2), (1, 3), (4, 6), (5, 7)],
        [0, 2, 1, 3, 0, 2, 1, 3],
    ),
]
"""A layout, a size, the global ranks of every group, and the part of each global rank."""


@pytest.mark.parametrize(("layout", "size", "groups", "parts"), TABLE)
def test_groups_are_consecutive_data_parallel_ranks_of_one_index_and_stage(
    layout, size, groups, parts
):
    split = FfnSplit(layout, size)
    assert list(split.groups()) == groups
    assert [split.part_of(rank) for rank in range(layout.world_size)] == parts
    assert split.parts == layout.tp * size


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.sampled_from((2, 3, 4))
)  # fmt: skip
def test_every_stage_of_every_block_of_engines_holds_every_part_once(tp, blocks, pp, size):
    layout = ParallelLayout(tp=tp, dp=blocks * size, pp=pp)
    split = FfnSplit(layout, size)
    assert sorted(rank for ranks in split.groups() for rank in ranks) == list(
        range(layout.world_size)
    )
    held: dict[tuple[int, int], list[int]] = {}
    for ranks in split.groups():
        assert [split.part_of(rank) % size for rank in ranks] == list(range(size))
        assert len({layout.stage_of(rank) for rank in ranks}) == 1
        assert len({rank % tp for rank in ranks}) == 1
        for place, rank in enumerate(ranks):
            dp = rank // (pp * tp)
            assert dp == split.first_of(rank) + place
            held.setdefault((dp // size, layout.stage_of(rank)), []).append(split.part_of(rank))
    assert all(sorted(parts) == list(range(split.parts)) for parts in held.values())


@pytest.mark.parametrize(
    ("layout", "size", "said"),
    [
        (ParallelLayout(), 2, "there is one data-parallel rank, and nobody to split with"),
        (ParallelLayout(tp=2), 2, "there is one data-parallel rank, and nobody to split with"),
        (ParallelLayout(dp=4), 3, r"= 3: does not divide the 4 data-parallel ranks; choose one of "
         "2, 4"),
        (ParallelLayout(dp=2), 4, r"= 4: does not divide the 2 data-parallel ranks; choose one of "
         "2$"),
        (ParallelLayout(dp=2, dp_lockstep=False), 2, "ranks of a dense model are engines of their "
         "own, which never wait for each other"),
        (ParallelLayout(dp=2, pcp=2), 2, "prefill-context-parallel ranks have token counts of "
         "their own"),
    ],
)  # fmt: skip
def test_what_gives_no_groups_is_refused(layout, size, said):
    with pytest.raises(PlanError, match=said) as error:
        FfnSplit(layout, size)
    assert str(error.value).startswith(f"denseffn_tensor_parallel_size = {size}: ")


def test_an_intermediate_size_that_gives_no_even_parts_is_refused():
    split = FfnSplit(ParallelLayout(tp=2, dp=4), 4)
    split.require_even("layers.0.mlp", 1024, 128)
    with pytest.raises(PlanError, match=r"layers.0.mlp has an intermediate size of 1,020, which "
                       r"gives no 8 even parts \(tensor-parallel size 2 x .* 4\)"):  # fmt: skip
        split.require_even("layers.0.mlp", 1020)
    with pytest.raises(PlanError, match="no 8 even parts of whole blocks of 128"):
        split.require_even("layers.0.mlp", 1024 - 256, 128)


def test_bytes_of_a_part():
    tensors = (
        TensorSpec("weight", (64, 16), "float8_e4m3fn", 1024),
        TensorSpec("weight_scale_inv", (4, 1), "float32", 16),
    )
    split = FfnSplit(ParallelLayout(dp=4), 4)
    assert split.bytes_of([Linear("layers.0.mlp.up", 0, True, tensors)]) == (260, 780)
