"""What private communicators keep of a device is in the tokens, in what fits, and in the verdict.

The bytes are derived, not measured: see docs/serving.md.
"""

from __future__ import annotations

import pytest

from console import said
from hosted.tiny import CONFIG, write_config
from vllm_layershard import Layout, compare_layouts, plan_model
from vllm_layershard.errors import PlanError
from vllm_layershard.estimate.communicators import (
    CHANNELS,
    communicator_bytes,
    communicators_of,
)
from vllm_layershard.estimate.taken import beside_taken
from vllm_layershard.planner.hardware import load_hardware
from vllm_layershard.runtime.ranks.nccl import MAX_CTAS

MIB = 2**20
EIGHT = Layout(dp=8, ep=True)
SIXTEEN = Layout(dp=16, ep=True)
TWO = Layout(dp=2, ep=True)
BOTH = ["o_proj", "fused_qkv_a_proj"]
"""Split over tensor-parallel ranks, and whole on each of them."""


@pytest.mark.parametrize(
    ("device", "layout", "options", "number", "mib", "unknown"),
    [
        ("H200", EIGHT, {}, 1, 96, 0),
        ("H200", SIXTEEN, {}, 1, 139, 0),
        ("GB200", SIXTEEN, {}, 1, 96, 0),  # one fast link, four nodes
        ("H200", Layout(tp=2, dp=4, ep=True), {"layers": BOTH}, 2, 192, 0),
        ("H200", EIGHT, {"layers": BOTH}, 1, 96, 0),  # one group for both
        ("H200", EIGHT, {"move": "auto"}, 2, 96, 1),
        ("H200", EIGHT, {"move": "activations"}, 1, 0, 1),
        ("H200", EIGHT, {"placement": "replicated"}, 0, 0, 0),
        ("H200", EIGHT, {"placement": "striped"}, 0, 0, 0),  # pulls: none outlives the loading
        ("H200", TWO, {}, 0, 0, 0),
        ("H200", TWO, {"transport": "broadcast"}, 1, 96, 0),
        ("H200", TWO, {"move": "auto"}, 2, 96, 1),
        # Pairs pull and four broadcast: those of the pairs have moved weights at loading.
        ("H200", Layout(tp=2, dp=2, ep=True), {"layers": BOTH}, 2, 192, 0),
        ("H200", EIGHT, {"ffn_tp": 8}, 2, 96, 1),
        ("910C", EIGHT, {}, 1, 400, 0),
        ("910C", EIGHT, {"ffn_tp": 8}, 2, 800, 0),
        ("MI300X", EIGHT, {}, 1, 0, 1),
    ],
)
def test_what_is_kept(device, layout, options, number, mib, unknown):
    options = {"layers": ["o_proj"], **options}
    found = plan_model("DeepSeek-V3", layout=layout, hardware=device, **options)
    kept = communicators_of(found.planned, found.forecast.hardware)
    assert (kept.number, kept.nbytes, kept.unknown) == (number, mib * MIB, unknown)
    assert (found.memory.communicators, found.memory.communicator_bytes) == kept[:2]


def test_replicas_of_a_dense_model_have_none():
    found = plan_model("Qwen3-32B", None, Layout(dp=2), hardware="H200")
    assert found.memory.communicators == 0
    assert found.planned.groups, "they share"


def test_the_bound_is_the_one_that_nccl_is_told():
    assert CHANNELS == MAX_CTAS


@pytest.mark.parametrize(("device", "mib", "block"), [("H200", 139, 16), ("910C", 400, 128)])
def test_tokens_room_and_comparison_count_it_alike(device, mib, block):
    found = plan_model("DeepSeek-V3", ["o_proj"], SIXTEEN, hardware=device)
    memory, cache = found.memory, found.kv_cache
    assert communicator_bytes(found.planned, found.forecast.hardware) == (mib * MIB,) * 16
    assert memory.saved_bytes == found.planned.saved_bytes, "bytes that are saved stay exact"
    rank = found.limit.rank
    left = memory.saved_bytes[rank] - mib * MIB
    assert abs(cache.tokens_gained - left // cache.bytes_per_token) <= block
    held = memory.weight_bytes_sharded
    room = int(found.forecast.hardware.memory_bytes.value * 0.92) - held - mib * MIB
    assert found.room_tokens == room // (block * cache.bytes_per_token) * block
    layouts = ["dp16+ep", "dp16+ep+shard"]
    plain, sharded = compare_layouts(
        "DeepSeek-V3", layouts, layers=["o_proj"], hardware=device
    ).layouts
    assert sharded.engine_tokens == found.room_tokens
    assert sharded.weight_bytes == held
    assert sharded.room_bytes == room
    if plain.fits:
        assert abs(sharded.engine_tokens - plain.engine_tokens - cache.tokens_gained) <= 1


def test_less_than_it_keeps_is_nothing_saved(tmp_path):
    """Its linears are a few KiB each."""
    model = str(write_config(tmp_path / "model", CONFIG))
    found = plan_model(model, ["o_proj"], Layout(dp=4), hardware="H200")
    assert min(found.memory.saved_bytes) > 0
    left = min(beside_taken(found.planned, found.forecast.hardware).saved_bytes)
    assert left == min(found.memory.saved_bytes) - 96 * MIB
    said_so = f"a rank saves nothing ({left:,} bytes, its private communicators counted)"
    assert said_so in found.forecast.verdict
    assert f"a rank saves {left:,} bytes" in found.failures()
    assert found.kv_cache.tokens_gained < 0
    with pytest.raises(PlanError, match=r"no linear of .* saves anything"):
        plan_model(model, "auto", Layout(dp=4), hardware="H200")
    pulls = plan_model(model, ["o_proj"], Layout(dp=4), hardware="H200", placement="striped")
    assert "communicators" not in pulls.forecast.verdict


def test_auto_plans_what_it_keeps():
    found = plan_model("DeepSeek-V3", "auto", EIGHT, hardware="H200", tokens=65536)
    again = plan_model(
        "DeepSeek-V3",
        list(found.planned.config.layers),
        EIGHT,
        hardware="H200",
        tokens=65536,
        layer_stride=found.planned.config.layer_stride,
    )
    assert found.memory == again.memory
    assert found.memory.communicator_bytes == 96 * MIB
    assert found.kv_cache == again.kv_cache


@pytest.mark.parametrize(
    ("flags", "row"),
    [
        (["--dp", "8"], "1 private a rank, 96.00 MiB: derived, not measured (from NCCL's sources)"),
        (
            ["--dp", "8", "--move", "auto"],
            "2 private a rank, 96.00 MiB: derived, not measured (from NCCL's sources); not "
            "counted: 1 for tokens, of unknown size",
        ),
        (["--dp", "8", "--hardware", "MI300X"], "1 private a rank: what is kept is not known"),
        (
            ["--dp", "8", "--hardware", "910C"],
            "1 private a rank, 400.00 MiB: derived, not measured (2 x HCCL_BUFFSIZE of 200 MB)",
        ),
        (["--dp", "2"], None),
    ],
)
def test_a_row_says_so(flags, row, tmp_path):
    page = tmp_path / "page.html"
    flags = ["--model", "DeepSeek-V3", "--ep", "--layers", "o_proj", *flags]
    shown = said("plan", *flags, "--html", str(page), COLUMNS="300").splitlines()
    rows = [line.split(maxsplit=1)[1] for line in shown if line.startswith("communicators")]
    assert rows == ([] if row is None else [row])
    counted = row is not None and "MiB" in row
    assert ("kept by private communicators a rank: derived" in page.read_text()) == counted


def test_the_profiles_that_have_a_figure():
    """CUDA's have a compute capability; Ascend's compute in int8 and have none."""
    planned = plan_model("DeepSeek-V3", ["o_proj"], EIGHT, transport="broadcast").planned
    for name, known in (("A100", 96), ("H20", 96), ("B300", 96), ("910B2", 400), ("MI355X", 0)):
        kept = communicators_of(planned, load_hardware(name))
        assert kept.nbytes == known * MIB, name
