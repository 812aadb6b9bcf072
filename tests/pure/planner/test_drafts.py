"""Draft (MTP) layers are an input: in the weights, in the cache, and in the launch line."""

from __future__ import annotations

import json

import pytest

from console import layershard
from vllm_layershard import ConfigError, Layout, compare_layouts, plan_model
from vllm_layershard.planner.layer_map import map_layers

LAYOUT = Layout(dp=8, ep=True)

ATTENTION = 7168 * (1536 + 576) + 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168
EXPERTS = (32 + 1) * 3 * 7168 * 2048
SCALES = (ATTENTION + EXPERTS) / (128 * 128) * 4
PLAIN = 256 * 7168 * 2 + 256 * 4 + 2 * 7168 * 2 + (1536 + 512) * 2
PROJECTION = 2 * 7168 * 7168 * 2 + 3 * 7168 * 2


def test_weights_and_cache_of_deepseek_v3_are_the_sum_of_its_draft_layer() -> None:
    """Independent of the planner: a layer of 32 of 256 experts, in fp8 blocks, and `eh_proj`."""
    plain = plan_model("DeepSeek-V3", layout=LAYOUT)
    drafting = plan_model("DeepSeek-V3", layout=LAYOUT, mtp=1)
    held = drafting.memory.weight_bytes_parts
    assert held.drafts == pytest.approx(ATTENTION + EXPERTS + SCALES + PLAIN + PROJECTION, rel=1e-3)
    derived = 128 * 256 * 512 * 2
    more = drafting.memory.weight_bytes_replicated - plain.memory.weight_bytes_replicated
    assert more == held.drafts + derived
    assert drafting.kv_cache.bytes_per_token == plain.kv_cache.bytes_per_token + 576 * 2
    assert drafting.memory.saved_bytes == plain.memory.saved_bytes
    assert [group.digest for group in drafting.groups] == [group.digest for group in plain.groups]


def test_only_the_last_stage_holds_them() -> None:
    drafting = plan_model("DeepSeek-V3", layout=Layout(dp=8, pp=2, ep=True), mtp=1)
    first, last = drafting.planned.weight_bytes[0], drafting.planned.weight_bytes[-1]
    assert first.drafts == 0 < last.drafts
    assert drafting.planned.stage_kv_bytes("auto") == (31 * 1152, (30 + 1) * 1152)


def test_the_states_of_a_hybrid_grow_with_the_tokens_that_are_drafted() -> None:
    one, three = (plan_model("Qwen3.5-397B-A17B", layout=LAYOUT, mtp=n) for n in (1, 3))
    channels = 2 * 16 * 128 + 64 * 128
    grown = three.kv_cache.state_bytes_per_sequence - one.kv_cache.state_bytes_per_sequence
    assert grown == 45 * 2 * channels * 2
    assert three.kv_cache.bytes_per_token == one.kv_cache.bytes_per_token == (15 + 1) * 2048


def test_the_output_names_them_and_the_launch_line_asks_for_them() -> None:
    result = plan_model("DeepSeek-V3", layout=LAYOUT, mtp=2)
    assert result.launch is not None
    asked = """--speculative-config '{"method": "mtp", "num_speculative_tokens": 2}'"""
    assert asked in result.launch
    said = "drafts (MTP) are counted"
    assert [text for text in result.warnings if text.startswith(f"{said}, 1 layer")]
    compared = compare_layouts("DeepSeek-V3", "dp8+ep", mtp=1)
    assert [text for text in compared.warnings if text.startswith(said)]
    mapped = map_layers("DeepSeek-V3", layout=LAYOUT, mtp=1)
    assert [text for text in mapped.warnings if text.startswith(said)]
    checked = layershard(
        *("check", '{"layer_sharding": ["o_proj"]}', "--model", "DeepSeek-V3"),
        *("--dp", "8", "--ep", "--mtp", "1", "--json"),
    )
    assert said in " ".join(json.loads(checked.stdout)["warnings"])


@pytest.mark.parametrize(
    ("model", "mtp", "message"),
    [
        ("MiniMax-M2", 1, "--mtp: MiniMaxAI/MiniMax-M2 states no draft"),
        ("Qwen3-32B", 1, "--mtp: Qwen/Qwen3-32B states no draft"),
        ("DeepSeek-V3", 0, "mtp = 0: give a whole number from 1 to 64"),
        ("DeepSeek-V3", True, "mtp = true: give a whole number"),
    ],
)
def test_what_cannot_be_drafted_is_refused(model: str, mtp: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_model(model, mtp=mtp)
