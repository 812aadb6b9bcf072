"""Dense MLPs in parts, as the planner counts and prints them; without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from console import complaint, document, said
from hosted.tiny import CONFIG, write_config
from vllm_layershard.errors import LayerShardError
from vllm_layershard.estimate.activations.dense_mlps import split_seconds
from vllm_layershard.estimate.exchange.collectives import all_gather_seconds
from vllm_layershard.estimate.nodes import widest
from vllm_layershard.estimate.roofline import Roofline
from vllm_layershard.models.operation import Operation
from vllm_layershard.planner.dense_mlps import split_dense_mlps
from vllm_layershard.planner.layout import Layout
from vllm_layershard.planner.plan import plan_model

KEY = "denseffn_tensor_parallel_size"
V3 = ("--model", "DeepSeek-V3", "--dp", "8", "--ep")

WHOLE = 3 * 7168 * 18432
"""Weights of one dense MLP of DeepSeek-V3, each a byte in fp8."""

SCALES = 3 * 56 * 144 * 4
"""Bytes of the scales of its blocks."""


def test_deepseek_v3_saves_a_gibibyte_less_three_percent_in_fp8():
    ffn = document("plan", *V3, "--ffn-tp", "8")["ffn"]
    (saved,), (held,) = ffn["saved_bytes"], ffn["held_bytes"]
    assert saved == 3 * (WHOLE + SCALES) * 7 // 8
    assert held == 3 * (WHOLE + SCALES) // 8
    assert round(saved / 2**30, 2) == 0.97
    assert (ffn["size"], ffn["mlps"], ffn["ranks"]) == (8, [3], [list(range(8))])


@pytest.mark.parametrize(("size", "saved"), [(2, 1 / 2), (4, 3 / 4), (8, 7 / 8)])
def test_what_it_saves_is_part_of_what_is_saved(size, saved):
    plain = document("plan", *V3)
    split = document("plan", *V3, "--ffn-tp", str(size))
    more = int(3 * (WHOLE + SCALES) * saved)
    memory, before = split["memory"], plain["memory"]
    assert memory["saved_bytes"] == [nbytes + more for nbytes in before["saved_bytes"]]
    assert memory["weight_bytes_replicated"] == before["weight_bytes_replicated"]
    assert memory["weight_bytes_sharded"] == before["weight_bytes_sharded"] - more
    gathered = 2 * size * 8192 * 7168 * 2  # tokens and their sums, in bfloat16
    assert (memory["gathered_bytes"], before["gathered_bytes"]) == (gathered, 0)
    gained = split["kv_cache"]["tokens_gained"] - plain["kv_cache"]["tokens_gained"]
    assert gained == pytest.approx((more - gathered) / plain["kv_cache"]["bytes_per_token"], abs=16)
    assert split["prefetch"]["phases"] == plain["prefetch"]["phases"]
    assert split["series"] == plain["series"]
    assert plain["ffn"] is None
    assert [w for w in split["warnings"] if w not in plain["warnings"]] == [
        "dense MLPs in parts: their tokens move in every forward, which no time here counts, and "
        "answers are equal to rounding only",
        "dense MLPs in parts: what they gather is taken from the room as an upper bound; with "
        "vLLM's default all-to-all backend the routed experts gather more, and the cache loses "
        "none of it",
    ]


def test_a_part_of_a_rank_is_what_the_server_reports(tmp_path):
    """The bytes that tests/servers/tokens/test_ffn.py finds: four MLPs of 3 x 128 x 256 in bf16."""
    model = str(write_config(tmp_path / "model", CONFIG))
    result = split_dense_mlps(model, Layout(dp=2), 2)
    whole = 4 * 3 * 128 * 256 * 2
    assert result.ffn is not None
    assert result.ffn.held_bytes == result.ffn.saved_bytes == (whole // 2,)
    over_tp = split_dense_mlps(model, Layout(tp=2, dp=2), 2)
    assert over_tp.ffn is not None
    assert over_tp.ffn.held_bytes == (whole // 4,)
    assert over_tp.ffn.ranks == ((0, 2), (1, 3))
    of_stages = split_dense_mlps(model, Layout(dp=2, pp=2), 2)
    assert of_stages.ffn is not None
    assert of_stages.ffn.mlps == (4, 0)
    assert of_stages.ffn.held_bytes == (whole // 2, 0)


def test_a_suffix_that_names_dense_mlps_and_others_shards_the_others():
    plan = document("plan", *V3, "--ffn-tp", "8", "--layers", "gate_up_proj")
    assert [series["layer_ids"] for series in plan["series"]] == [list(range(3, 61))]
    plan = document("plan", *V3, "--layers", "gate_up_proj")
    assert sorted(i for series in plan["series"] for i in series["layer_ids"]) == list(range(61))


def test_the_launch_line_has_the_key_and_check_takes_it(tmp_path):
    launch = document("plan", *V3, "--ffn-tp", "4", "--layers", "o_proj")["launch"]
    stated = json.loads(launch.partition("--additional-config '")[2].partition("'")[0])
    assert stated == {"layer_sharding": ["o_proj"], KEY: 4}
    checked = document("check", json.dumps(stated), *V3)
    assert checked["ffn"] == document("plan", *V3, "--ffn-tp", "4")["ffn"]
    alone = document("check", json.dumps({KEY: 4}), *V3)
    assert alone["ffn"] == checked["ffn"]
    assert sorted(alone) == ["ffn", "model", "parallel", "schema_version", "version", "warnings"]
    text = said("check", json.dumps({KEY: 4}), *V3)
    assert (
        "ok: deepseek-ai/DeepSeek-V3 on 8 ranks splits dense MLPs: 3 over 4 data-parallel" in text
    )
    off = said("check", json.dumps({KEY: 1}), *V3)
    assert "whose dense MLPs stay whole" in off
    assert document("check", json.dumps({KEY: 1}), *V3)["ffn"] is None
    flag = document("check", '["o_proj"]', *V3, "--ffn-tp", "4")
    assert flag["ffn"] == checked["ffn"]


def plan_of(tmp_path: Path, changed: dict[str, Any], size: int = 2, **layout: Any) -> Any:
    model = write_config(tmp_path / "model", CONFIG | changed)
    return plan_model(str(model), ["o_proj"], Layout(**({"dp": 2} | layout)), ffn_tp=size)


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}

REFUSED = [
    ({}, {"size": 3}, "= 3: does not divide the 2 data-parallel ranks; choose one of 2"),
    ({}, {"size": 0}, "= 0: should be greater than or equal to 1"),
    ({}, {"size": 2.0}, "= 2.0: should be a valid integer"),
    ({}, {"dp": 1, "tp": 2}, "there is one data-parallel rank, and nobody to split with"),
    ({}, {"pcp": 2}, "prefill-context-parallel ranks have token counts of their own"),
    ({}, {"tp": 2, "ep": True}, "with expert, tensor and data parallelism together"),
    ({"first_k_dense_replace": 0}, {}, "has no decoder layer without routed experts"),
    ({"intermediate_size": 250}, {"dp": 4, "size": 4}, "gives no 4 even parts"),
    ({"quantization_config": FP8}, {}, "is stored as weight, weight_scale, which is not split"),
]


@pytest.mark.parametrize(("changed", "asked", "problem"), REFUSED)
def test_what_gives_no_parts_is_refused_in_one_line(tmp_path, changed, asked, problem):
    with pytest.raises(LayerShardError) as error:
        plan_of(tmp_path, changed, **asked)
    assert str(error.value).startswith(KEY)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_that_only_split_linears_have_says_so():
    with pytest.raises(LayerShardError, match=rf"dense MLPs are split \({KEY}\), and not sharded"):
        plan_model("DeepSeek-V3", ["mlp.down_proj"], ffn_tp=8)
    with pytest.raises(LayerShardError, match="engines of their own"):
        plan_model("Qwen3-32B", ["o_proj"], ffn_tp=2)


def test_a_part_has_whole_blocks():
    """18,432 columns are 144 blocks: 16 parts of nine, and no 32 parts."""
    layout = Layout(dp=32, ep=True)
    result = plan_model("DeepSeek-V3", ["o_proj"], layout, ffn_tp=16)
    assert result.ffn is not None
    assert result.ffn.held_bytes == (3 * (WHOLE + SCALES) // 16,)
    with pytest.raises(LayerShardError, match="gives no 32 even parts of whole blocks of 128"):
        plan_model("DeepSeek-V3", ["o_proj"], layout, ffn_tp=32)


@pytest.mark.parametrize(
    ("stated", "flags", "problem"),
    [
        ({}, ("--token-exchange", "o_proj"), "--token-exchange: goes with the key layer_sharding"),
        ({}, ("--mtp", "1", "--exact"), "--mtp, --exact: goes with the key layer_sharding"),
        ({"layers": ["o_proj"]}, (), f"layers: stands beside {KEY}, where vLLM would not see it"),
    ],
)
def test_nothing_that_is_asked_beside_the_key_alone_is_lost(stated, flags, problem):
    code, text = complaint("check", json.dumps({KEY: 4} | stated), *V3, *flags)
    assert code == 2
    assert problem in text


def test_two_sizes_in_one_question_are_refused():
    _, text = complaint("check", json.dumps({KEY: 4}), *V3, "--ffn-tp", "8")
    assert "--ffn-tp 8: the additional config says 4 itself; leave one of the two out" in text


@pytest.mark.parametrize("tokens", [8, 64, 152, 8192])
@pytest.mark.parametrize("size", [2, 8])
def test_a_part_takes_two_collectives_and_products_of_all_tokens(size: int, tokens: int) -> None:
    """Each rank multiplies all tokens of its group by an eighth of the weights, or by a half."""
    found = plan_model("DeepSeek-V3", ["o_proj"], Layout(dp=8, ep=True), ffn_tp=size)
    device = found.forecast.hardware
    seconds = Roofline(device).seconds

    def product(rows: int, inner: int, many: int) -> float:
        return seconds(
            Operation("", 2 * many * rows * inner, rows * inner + 2 * many * (rows + inner), "fp8")
        )

    width, hidden, together = 18432, 7168, size * tokens
    part = product(2 * width // size, hidden, together) + product(hidden, width // size, together)
    whole = product(2 * width, hidden, tokens) + product(hidden, width, tokens)
    moved = 2 * all_gather_seconds(together * hidden * 2, widest([range(size)], 8), device)
    (longer,) = split_seconds(found.planned, device, tokens)
    assert longer == pytest.approx(3 * (moved + part - whole))


@pytest.mark.parametrize("move", ["auto", "activations"])
def test_tokens_a_second_count_the_parts(move: Any) -> None:
    """They counted the memory that parts spare, and not the collectives that it costs."""
    options: dict[str, Any] = {"hardware": "H200", "move": move, "ffn_tp": 8, "tokens": 1024}
    layout = Layout(dp=8, ep=True)
    result = plan_model("DeepSeek-V3", ["o_proj"], layout, **options)
    assert result.move is not None
    full = result.move.sharded_decode
    assert full is not None
    same = plan_model("DeepSeek-V3", ["o_proj"], layout, **options, batch=full.sequences).move
    assert same is not None
    decode = same.phases[1]
    longer = decode.weights_us if decode.moves == "weights" else decode.activations_us
    (parts,) = split_seconds(result.planned, result.forecast.hardware, full.sequences)
    assert parts > 100e-6
    assert full.step_us == pytest.approx(decode.compute_us + longer + parts * 1e6, abs=0.3)
    (said_of_it,) = [text for text in result.move.assumptions if "dense MLPs in parts" in text]
    assert said_of_it.startswith("tokens a second: ")
    assert "in every forward, which only tokens a second count, and" in " ".join(result.warnings)
    without = plan_model("DeepSeek-V3", ["o_proj"], layout, **(options | {"ffn_tp": None})).move
    assert without is not None
    assert not any("dense MLPs" in text for text in without.assumptions)
