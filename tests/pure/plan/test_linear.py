"""Linears: which tensors move, which names match, what is said when none does."""

from __future__ import annotations

import pytest

from vllm_layershard.errors import PlanError
from vllm_layershard.plan import (
    Linear,
    TensorSpec,
    as_processed,
    in_stride,
    inventory,
    no_match,
    none_left,
    select,
    series_of,
)
from vllm_layershard.plan.linear import short_names, suffix_of


def linear(prefix: str, *nbytes: int, layer_id: int | None = None, tp_replicated: bool = False):
    index = next(int(p) for p in prefix.split(".") if p.isdigit()) if layer_id is None else layer_id
    tensors = tuple(TensorSpec(f"t{i}", (n,), "uint8", n) for i, n in enumerate(nbytes))
    return Linear(prefix, index, tp_replicated, tensors)


def test_block_scales_and_biases_stay_and_packed_group_scales_move():
    fp8 = linear("layers.0.o_proj", 117_440_512, 28_672)
    assert (fp8.large_bytes, fp8.small_bytes) == (117_440_512, 28_672)
    int4 = linear("layers.0.o_proj", 8_000, 1_000)
    assert (int4.large_bytes, int4.small_bytes) == (9_000, 0)
    assert linear("layers.0.o_proj", 100, 0).large == (TensorSpec("t0", (100,), "uint8", 100),)


@pytest.mark.parametrize(
    ("processed", "lost"),
    [
        ((32_768, 1_536), False),  # as loaded
        ((16_384,), False),  # quantised further
        ((1_536, 1_536), True),  # scales and sums only: the weight is in a kernel's own memory
        ((0, 1_536), True),  # emptied
        ((), True),
    ],
)
def test_a_weight_that_left_its_tensors_is_missed(processed, lost):
    loaded = linear("layers.0.o_proj", 32_768, 1_536)
    assert linear("layers.0.o_proj", *processed).lost_weight_of(loaded) is lost


@pytest.mark.parametrize(
    ("name", "matches"),
    [
        ("o_proj", True),
        ("self_attn.o_proj", True),
        ("model.layers.3.self_attn.o_proj", True),
        ("proj", False),
        ("attn.o_proj", False),
        ("self_attn", False),
    ],
)
def test_names_are_dotted_suffixes(name, matches):
    assert linear("model.layers.3.self_attn.o_proj", 1).is_named(name) is matches


def test_a_name_that_matches_nothing_lists_what_there_is():
    linears = [linear(f"model.layers.{i}.self_attn.o_proj", 2048) for i in range(3)]
    assert select(linears, ["out"]) == {"out": ()}
    assert str(no_match("out", linears)) == (
        "'out' matches no linear of this model; those that may be sharded are: "
        "self_attn.o_proj (3 x 2,048 bytes)"
    )
    assert inventory([]) == ""


def test_what_may_never_be_sharded_is_not_offered():
    linears = [linear(f"model.layers.3.{name}", 8) for name in ("mlp.gate", "mlp.down_proj")]
    assert str(no_match("out", linears)).endswith(": mlp.down_proj (1 x 8 bytes)")


def test_a_name_that_matches_two_linears_of_a_layer_is_refused():
    linears = [linear("layers.0.attn.proj", 1), linear("layers.0.mlp.proj", 1)]
    with pytest.raises(PlanError, match=r"layers\.0\.attn\.proj and layers\.0\.mlp\.proj of layer"):
        select(linears, ["proj"])


def test_layers_of_two_layouts_are_two_series():
    linears = [linear(f"layers.{i}.mlp.up", 10 if i < 2 else 20) for i in range(5)]
    grouped = series_of(select(linears, ["up"]))
    assert [(s.name, s.layer_ids, s.layer_bytes) for s in grouped] == [
        ("up@0", (0, 1), 10),
        ("up@2", (2, 3, 4), 20),
    ]


def test_a_stride_leaves_the_other_layers_replicated():
    linears = [linear(f"layers.{i}.o_proj", 10) for i in range(3, 10)]
    (series,) = series_of(select(linears, ["o_proj"]), layer_stride=3)
    assert series.layer_ids == (3, 6, 9)
    assert [x.layer_id for x in linears if in_stride(x.layer_id, 3)] == [3, 6, 9]


def test_the_first_layer_may_stay_on_every_rank():
    """It has no position, and the first that has one stands at its boundary."""
    linears = [linear(f"layers.{i}.o_proj", 10) for i in range(3, 10)]
    selected = select(linears, ["o_proj"])
    (series,) = series_of(selected, keep_first=True)
    assert (series.kept_layer, series.layer_ids) == (3, (4, 5, 6, 7, 8, 9))
    assert [series.boundary(p) for p in range(6)] == [3, 5, 6, 7, 8, 9]
    (series,) = series_of(selected, 3, keep_first=True)
    assert (series.kept_layer, series.layer_ids) == (3, (6, 9))
    (series,) = series_of(select(linears[:1], ["o_proj"]), keep_first=True)
    assert (series.kept_layer, series.layer_ids) == (None, (3,))


def test_each_of_two_layouts_keeps_its_first():
    linears = [linear(f"layers.{i}.mlp.up", 10 if i < 2 else 20) for i in range(5)]
    grouped = series_of(select(linears, ["up"]), keep_first=True)
    assert [(s.name, s.kept_layer, s.layer_ids) for s in grouped] == [
        ("up@0", 0, (1,)),
        ("up@2", 2, (3, 4)),
    ]


def test_a_processed_series_is_the_same_but_for_its_bytes():
    linears = [linear(f"layers.{i}.mlp.up", 10 if i < 2 else 20) for i in range(5)]
    _, second = series_of(select(linears, ["up"]), keep_first=True)
    packed = [linear(f"layers.{i}.mlp.up", 5) for i in (3, 4)]
    processed = as_processed(second, packed)
    assert (processed.name, processed.kept_layer, processed.layer_ids) == ("up@2", 2, (3, 4))
    assert processed.layer_bytes == 5


def test_copies_over_different_ranks_are_different_series():
    linears = [linear(f"layers.{i}.a", 10, tp_replicated=i == 1) for i in range(2)]
    assert [s.tp_replicated for s in series_of(select(linears, ["a"]))] == [False, True]


def test_a_tenth_of_the_largest_still_moves():
    assert linear("layers.0.a", 100, 10, 9).large_bytes == 110
    assert linear("layers.0.a").large == ()
    assert linear("layers.0.a", 0).large == ()


def test_a_series_carries_what_its_linears_say():
    up = TensorSpec("weight", (4, 2), "bfloat16", 16, stride=(2, 1))
    bias = TensorSpec("bias", (1,), "uint8", 1)
    linears = [Linear(f"layers.{i}.up", i, True, (up, bias)) for i in (11, 2, 7)]
    (grouped,) = series_of(select(linears, ["up"])).items()
    series, members = grouped
    assert (series.name, series.layer_ids) == ("up", (2, 7, 11))
    assert (series.layer_bytes, series.small_bytes) == (16, 1)
    assert series.tp_replicated is True
    assert series.layout == "weight:bfloat16[4x2/2x1]"
    assert [member.layer_id for member in members] == [2, 7, 11]


@pytest.mark.parametrize(
    "change",
    [{"name": "packed"}, {"shape": (2, 4)}, {"dtype": "float16"}, {"stride": (1, 4)}],
    ids=str,
)
def test_tensors_that_cannot_share_a_slot_make_two_series(change):
    same = {"name": "weight", "shape": (4, 2), "dtype": "bfloat16", "nbytes": 16, "stride": (2, 1)}
    linears = [
        Linear("layers.0.up", 0, False, (TensorSpec(**same),)),
        Linear("layers.1.up", 1, False, (TensorSpec(**same | change),)),
    ]
    assert [s.name for s in series_of(select(linears, ["up"]))] == ["up@0", "up@1"]


def test_series_come_in_the_order_of_the_names():
    linears = [linear(f"layers.{i}.{name}", 10) for i in range(2) for name in "ab"]
    assert [s.name for s in series_of(select(linears, ["b", "a"]))] == ["b", "a"]


def test_a_stride_that_leaves_no_layer_leaves_no_series():
    linears = [linear(f"layers.{i}.o_proj", 10) for i in (1, 2, 3)]
    assert series_of(select(linears, ["o_proj"]), layer_stride=100) == {}
    assert str(none_left("o_proj", 100)) == (
        "layer_stride 100 leaves no layer of 'o_proj' to shard; lower it"
    )


def test_the_suffix_is_what_follows_the_decoder_layer():
    assert suffix_of("model.layers.3.self_attn.o_proj") == "self_attn.o_proj"
    assert suffix_of("model.layers.3.mlp.experts.7.up") == "mlp.experts.7.up"
    assert suffix_of("lm_head") == "lm_head"


def test_linears_of_one_name_and_two_sizes_are_listed_apart():
    linears = [linear(f"layers.{i}.up", 10 if i < 2 else 2000) for i in range(5)]
    assert inventory(linears) == "up (2 x 10 bytes), up (3 x 2,000 bytes)"


def test_layers_are_put_in_order_by_number_not_by_name():
    linears = [linear(f"layers.{i}.o_proj", 10) for i in (10, 2, 9)]
    selected = select(linears, ["o_proj"])
    assert [member.layer_id for member in selected["o_proj"]] == [2, 9, 10]
    (series,) = series_of({"o_proj": linears})
    assert series.layer_ids == (2, 9, 10)


def test_short_names_name_one_kind_each():
    kinds = ["self_attn.o_proj", "mlp.down_proj", "mlp.shared_experts.down_proj"]
    linears = [linear(f"model.layers.{i}.{kind}", 2048) for i in range(2) for kind in kinds]
    assert short_names(linears) == ["o_proj", "mlp.down_proj", "shared_experts.down_proj"]
