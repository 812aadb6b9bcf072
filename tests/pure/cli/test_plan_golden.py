"""Golden numbers of `layershard plan`, and its schema."""

import json
from pathlib import Path

import pytest

from checkpoints import small_config
from console import document

SCHEMA = {
    "model": ["name", "source", "architecture", "num_layers", "dtype", "quantization"],
    "parallel": ["tp", "dp", "pcp", "pp", "ep"],
    "sharding": ["layers", "prefetch_step", "layer_stride", "placement", "transport"],
    "memory": [
        "weight_bytes_replicated",
        "weight_bytes_sharded",
        "saved_bytes_min",
        "saved_bytes_max",
    ],
    "kv_cache": ["dtype", "bytes_per_token", "tokens_gained"],
    "prefetch": ["recommended_step", "verdict", "phases", "break_even_tokens"],
}
SERIES = [
    "name",
    "pp_stage",
    "group_size",
    "layer_ids",
    "layer_bytes",
    "small_bytes",
    "replicated_bytes",
    "num_slots",
    "slot_bytes",
    "owner",
    "resident_bytes",
    "saved_bytes",
]
PHASE = ["phase", "tokens", "compute_us", "fetch_us", "exposed_us"]


def planned(*flags: str) -> dict:
    return document("plan", *flags)


def test_deepseek_v3_on_a_node_of_eight() -> None:
    flags = [
        "--model",
        "DeepSeek-V3",
        "--tp",
        "1",
        "--dp",
        "8",
        "--layers",
        "o_proj",
        "--prefetch-step",
        "1",
    ]
    plan = planned(*flags)
    (series,) = plan["series"]
    assert series["layer_bytes"] == 117440512
    assert series["small_bytes"] == 28672
    assert [series["owner"].count(rank) for rank in range(8)] == [8, 8, 8, 8, 8, 7, 7, 7]
    assert plan["memory"]["saved_bytes_min"] == 5989466112
    assert plan["memory"]["saved_bytes_max"] == 5989466112 + 117440512
    assert plan["kv_cache"] == {
        "dtype": "bfloat16",
        "bytes_per_token": 70272,
        "state_bytes_per_sequence": 0,
        "tokens_gained": 83792,
    }
    assert plan["model"]["name"] == "deepseek-ai/DeepSeek-V3"


def test_the_document_has_the_keys_of_its_schema() -> None:
    plan = planned("--model", "DeepSeek-V3")
    assert plan["schema_version"] == 1
    for key, names in SCHEMA.items():
        assert set(names) <= set(plan[key]), key
    assert all(set(SERIES) <= set(series) for series in plan["series"])
    assert all(set(PHASE) <= set(phase) for phase in plan["prefetch"]["phases"])
    assert plan["launch"].startswith("vllm serve deepseek-ai/DeepSeek-V3 ")
    for series in plan["series"]:
        for resident, saved in zip(series["resident_bytes"], series["saved_bytes"], strict=True):
            assert saved == series["replicated_bytes"] - resident - series["slot_bytes"]
    (group,) = plan["groups"]
    assert len(group["digest"]) == 64
    assert group["ranks"] == [list(range(8))]


def test_a_bare_model_assumes_a_node_and_says_so() -> None:
    plan = planned("--model", "deepseek-ai/deepseek-v3")
    assert plan["parallel"] == {"tp": 1, "dp": 8, "pcp": 1, "pp": 1, "ep": True}
    assert plan["sharding"]["layers"] == ["o_proj", "q_b_proj"]
    assert any("assumed one node of 8" in warning for warning in plan["warnings"])
    assert any("assumed H200" in warning for warning in plan["warnings"])


def test_ranks_in_two_groups_add_up() -> None:
    flags = ["--tp", "2", "--dp", "2", "--ep", "--layers", "o_proj,fused_qkv_a_proj"]
    plan = planned("--model", "DeepSeek-V3", *flags)
    split, whole = plan["groups"]
    assert (split["tp_replicated"], split["ranks"]) == (False, [[0, 2], [1, 3]])
    assert (whole["tp_replicated"], whole["ranks"]) == (True, [[0, 1, 2, 3]])
    saved = {series["name"]: series["saved_bytes"] for series in plan["series"]}
    o_proj, fused = saved["o_proj"], saved["fused_qkv_a_proj"]
    assert plan["memory"]["saved_bytes"] == [
        o_proj[0] + fused[0],
        o_proj[0] + fused[1],
        o_proj[1] + fused[2],
        o_proj[1] + fused[3],
    ]
    assert plan["memory"]["saved_bytes_min"] == min(plan["memory"]["saved_bytes"])


def test_pipeline_stages_have_series_of_their_own() -> None:
    plan = planned("--model", "DeepSeek-V3", "--dp", "4", "--pp", "2", "--layers", "o_proj")
    assert [(s["pp_stage"], len(s["layer_ids"])) for s in plan["series"]] == [(0, 31), (1, 30)]
    assert plan["series"][1]["owner"][0] == 31 % 4


def test_v2_lite_has_no_q_b_proj() -> None:
    assert planned("--model", "DeepSeek-V2-Lite")["sharding"]["layers"] == ["q_proj", "o_proj"]


@pytest.mark.parametrize(("text", "tokens"), [("1k", 1000), ("1K", 1024), ("25.6k", 25600)])
def test_tokens_are_read_as_vllm_reads_them(text: str, tokens: int) -> None:
    plan = planned("--model", "DeepSeek-V3", "--tokens", text)
    assert plan["prefetch"]["phases"][0]["tokens"] == tokens


def test_a_series_that_saves_nothing_is_named() -> None:
    plan = planned("--model", "DeepSeek-V3", "--dp", "8", "--layers", "o_proj,mlp.down_proj")
    assert any("mlp.down_proj saves nothing" in warning for warning in plan["warnings"])


def test_replicated_moves_nothing() -> None:
    plan = planned("--model", "DeepSeek-V3", "--dp", "8", "--ep", "--placement", "replicated")
    assert plan["memory"]["saved_bytes_min"] == plan["memory"]["saved_bytes_max"] == 0
    assert "nothing moves" in plan["prefetch"]["verdict"]
    assert '"placement": "replicated"' in plan["launch"]


def test_small_local_model_by_file_of_any_name(tmp_path: Path) -> None:
    config = small_config()
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(config))
    plan = planned("--model", str(path), "--tp", "1", "--dp", "2", "--layers", "o_proj,q_b_proj")
    o_proj, q_b_proj = plan["series"]
    assert o_proj["layer_bytes"] == 256 * 4 * 32 * 2
    assert q_b_proj["layer_bytes"] == 4 * (32 + 16) * 96 * 2
    assert o_proj["owner"] == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert plan["kv_cache"]["bytes_per_token"] == 9 * (64 + 16) * 2
    assert plan["launch"].startswith("vllm serve MODEL ")
    assert any("is not called config.json" in warning for warning in plan["warnings"])
    path.rename(tmp_path / "config.json")
    for given in (tmp_path, tmp_path / "config.json"):
        plan = planned("--model", str(given), "--tp", "1", "--dp", "2", "--layers", "o_proj")
        assert plan["launch"].startswith(f"vllm serve {tmp_path} ")
        assert not any("config.json" in warning for warning in plan["warnings"])
