"""Stripes of rows: where a weight is cut so that each rank's part makes results of its own."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_layershard.errors import PlanError
from vllm_layershard.plan import Linear, TensorSpec, as_processed, build_plan, series_of
from vllm_layershard.plan.rows import Rows, rows_of

SIZES = {"bfloat16": 2, "float32": 4, "float8_e4m3fn": 1, "int32": 4, "uint8": 1}


def tensor(name: str, dtype: str, *shape: int, stride: tuple[int, ...] = ()) -> TensorSpec:
    nbytes = SIZES[dtype]
    for size in shape:
        nbytes *= size
    return TensorSpec(name, shape, dtype, nbytes, stride)


def linear(*tensors: TensorSpec, layer: int = 0) -> Linear:
    return Linear(f"model.layers.{layer}.self_attn.o_proj", layer, False, tensors)


def plain(rows: int, columns: int, layer: int = 0) -> Linear:
    return linear(tensor("weight", "bfloat16", rows, columns, stride=(columns, 1)), layer=layer)


def in_blocks(rows: int, columns: int, layer: int = 0) -> Linear:
    return linear(
        tensor("weight", "float8_e4m3fn", rows, columns),
        tensor("weight_scale_inv", "float32", -(-rows // 128), -(-columns // 128)),
        layer=layer,
    )


def cut(kind, rows: int, columns: int, ranks: int, layers: int = 3):
    members = [kind(rows, columns, layer) for layer in range(layers)]
    (series,) = series_of({"o_proj": members}, by_rows=True)
    return build_plan([series], ranks, 1, "striped")


@given(st.integers(1, 5000), st.integers(1, 40), st.integers(2, 9))
def test_ranks_store_all_rows_each_once_and_none_is_parted(rows, columns, ranks):
    columns *= 16
    (of,) = cut(plain, rows, columns, ranks).series
    assert of.series.rows == Rows(rows, 2 * columns)
    parts = [of.rows(rank) for rank in range(ranks)]
    assert (parts[0][0], parts[-1][1]) == (0, rows)
    assert all(end == start for (_, end), (start, _) in pairwise(parts))
    lengths = [end - start for start, end in parts]
    assert max(lengths) - min(lengths) <= 1
    assert [2 * columns * length for length in lengths] == [end - a for a, end in of.stripes]
    assert of.ledger.resident_bytes == tuple(3 * 2 * columns * length for length in lengths)


@given(st.integers(1, 5000), st.integers(2, 9))
def test_rows_that_share_scales_stay_together(rows, ranks):
    (of,) = cut(in_blocks, rows, 256, ranks).series
    assert of.series.rows is not None
    for rank in range(ranks):
        first, end = of.rows(rank)
        assert first % 128 == 0 or first == rows
        assert end % 128 == 0 or end == rows
        assert of.series.rows.blocks_of(of.stripes[rank]) == (-(-first // 128), -(-end // 128))


def test_stripes_of_deepseek_v3s_o_proj_and_of_one_that_ranks_do_not_divide():
    """Written out: 7,168 rows are 56 blocks; 2,112 rows are 17, the last one half."""
    (of,) = cut(in_blocks, 7168, 16384, 8).series
    assert of.series.rows == Rows(7168, 16384, 128)
    assert [of.rows(rank) for rank in range(8)] == [(896 * r, 896 * r + 896) for r in range(8)]
    (of,) = cut(in_blocks, 2112, 7168, 4).series
    assert [of.rows(rank) for rank in range(4)] == [(0, 512), (512, 1024), (1024, 1536),
                                                    (1536, 2112)]  # fmt: skip
    (of,) = cut(plain, 10, 16, 4).series
    assert [of.rows(rank) for rank in range(4)] == [(0, 2), (2, 5), (5, 7), (7, 10)]
    (of,) = cut(in_blocks, 256, 128, 4).series
    assert [of.rows(rank) for rank in range(4)] == [(0, 0), (0, 128), (128, 128), (128, 256)]


def test_what_ranks_compare_has_the_stripes_and_digests_of_bytes_stay_as_they_were():
    plan = cut(plain, 10, 24, 4)
    members = [plain(10, 24, layer) for layer in range(3)]
    (series,) = series_of({"o_proj": members})
    by_bytes = build_plan([series], 4, 1, "striped")
    assert plan.document()["series"][0]["stripes"] == [[0, 96], [96, 240], [240, 336], [336, 480]]
    assert "rows" not in plan.document()["series"][0]["series"]
    assert plan.digest() != by_bytes.digest()
    assert by_bytes.series[0].stripes == ((0, 0), (0, 256), (256, 256), (256, 480))


def test_a_series_keeps_its_rows_once_it_is_processed():
    members = [in_blocks(512, 256, layer) for layer in range(3)]
    (series,) = series_of({"o_proj": members}, by_rows=True)
    assert as_processed(series, members) == series
    turned = [
        linear(tensor("weight", "float8_e4m3fn", 256, 512, stride=(1, 256)), each.tensors[1])
        for each in members
    ]
    with pytest.raises(PlanError, match="does not lie in rows"):
        as_processed(series, turned)


WEIGHT = tensor("weight", "float8_e4m3fn", 512, 256)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ((WEIGHT, tensor("weight_scale", "float32", 1)),
         "of its tensors (weight: float8_e4m3fn, weight_scale: float32) no rank can compute"),
        ((WEIGHT,), "(weight: float8_e4m3fn) no rank can"),
        ((tensor("weight_packed", "int32", 512, 32), tensor("weight_scale", "bfloat16", 512, 8)),
         "(weight_packed: int32, weight_scale: bfloat16) no rank can"),
        ((tensor("weight", "uint8", 512, 256), tensor("weight_scale_inv", "float32", 4, 2)),
         "(weight: uint8, weight_scale_inv: float32) no rank can"),
        ((WEIGHT, tensor("weight_scale_inv", "uint8", 4, 2)), "weight_scale_inv: uint8) no rank"),
        ((WEIGHT, tensor("weight_scale_inv", "float32", 9, 2)),
         "its scales (float32[9x2]) are not of blocks of its 512 rows"),
        ((WEIGHT, tensor("weight_scale_inv", "float32", 4, 2, stride=(1, 4))),
         "its scales (float32[4x2/1x4]) are not of blocks"),
        ((tensor("weight", "bfloat16", 512, 4), tensor("bias", "bfloat16", 512)),
         "it has so few columns that its bias would move, too"),
        ((tensor("weight", "bfloat16", 512, 256, stride=(1, 512)),),
         "its weight does not lie in rows (bfloat16[512x256/1x512])"),
    ],
)  # fmt: skip
def test_what_has_no_rows_to_compute_alone_is_refused_by_name(tensors, said):
    with pytest.raises(PlanError) as error:
        rows_of(linear(*tensors))
    assert "model.layers.0.self_attn.o_proj: it would be placed as stripes" in str(error.value)
    assert said in str(error.value)
    assert "placement 'round_robin'" in str(error.value)
