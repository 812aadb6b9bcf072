"""Draft (MTP) layers are an input: in the weights, in the cache, and in the launch line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from console import layershard
from truth.compare import CONFIGS
from vllm_layershard import ConfigError, Layout, PlanError, compare_layouts, plan_model
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


def stated(directory: Path, name: str, **changes: object) -> str:
    """A bundled config with other values; None takes a field out."""
    config = json.loads((CONFIGS / f"{name}.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(kept))
    return str(directory)


def test_a_class_has_one_draft_layer_where_its_config_says_nothing(tmp_path: Path) -> None:
    for name in ("deepseek-ai--DeepSeek-V3", "deepseek-ai--DeepSeek-V3.2", "zai-org--GLM-4.7"):
        model = stated(tmp_path, name, num_nextn_predict_layers=None)
        drafts = plan_model(model, layout=LAYOUT, mtp=1).planned.model.blueprint.drafts
        assert drafts is not None
        assert len(drafts.layers) == 1


def test_several_draft_layers_draft_as_many_tokens_or_a_multiple(tmp_path: Path) -> None:
    model = stated(tmp_path, "deepseek-ai--DeepSeek-V3", num_nextn_predict_layers=3)
    for mtp in (1, 2, 3, 6):
        assert plan_model(model, layout=LAYOUT, mtp=mtp).planned.model.drafted == mtp
    with pytest.raises(ConfigError, match=r"^--mtp 5: .* has 3 draft .*; give 3 or 6$"):
        plan_model(model, layout=LAYOUT, mtp=5)


def test_a_forward_has_room_for_what_each_sequence_drafts() -> None:
    sizes = {"tokens": 1024, "batch": 1024, "context": 256}
    for mtp, tokens in ((None, 1024), (3, 4096)):
        launch = plan_model("DeepSeek-V3", None, LAYOUT, mtp=mtp, **sizes).launch
        assert launch is not None
        assert f"--max-num-batched-tokens {tokens} --max-num-seqs 1024" in launch
    prefill = plan_model("DeepSeek-V3", layout=LAYOUT, mtp=3, tokens=8192, batch=16).launch
    assert prefill is not None
    assert "--max-num-batched-tokens 8192" in prefill


APART = Layout(dp=2, pcp=2, ep=True)


@pytest.mark.parametrize(
    ("model", "device", "flag"),
    [
        ("DeepSeek-V3.2", "H200", "-cc.cudagraph_mode=NONE"),
        ("GLM-5", "B300", "-cc.cudagraph_mode=NONE"),
        ("GLM-5", "MI300X", "-cc.cudagraph_mode=NONE"),
        ("Kimi-K2.5", "B300", "--language-model-only"),
        ("GLM-5", "910C", None),
        ("Kimi-K2.5", "910C", None),
        ("Kimi-K2-Instruct", "B300", None),
    ],
)
def test_the_launch_line_has_what_context_parallelism_asks_for(
    model: str, device: str, flag: str | None
) -> None:
    wide = Layout(dp=32, pcp=2, ep=True)
    flags = ("-cc.cudagraph_mode=NONE", "--language-model-only")
    result = plan_model(model, layout=wide, hardware=device)
    assert result.launch is not None
    assert [known for known in flags if known in result.launch] == [flag] * (flag is not None)
    said = [text for text in result.warnings if text.startswith("the launch command has ")]
    assert len(said) == (flag is not None)
    alone = plan_model(model, layout=Layout(dp=64, ep=True), hardware=device)
    assert not any(known in (alone.launch or "") for known in flags)


def test_several_draft_layers_are_refused_under_context_parallelism(tmp_path: Path) -> None:
    model = stated(tmp_path, "deepseek-ai--DeepSeek-V3", num_nextn_predict_layers=2)
    with pytest.raises(PlanError, match=r"^--mtp 2: would use 2 draft layers"):
        plan_model(model, layout=APART, mtp=2)
    assert plan_model(model, layout=APART, mtp=1).planned.model.drafted == 1
    assert plan_model(model, layout=APART, mtp=2, hardware="910C").planned.model.drafted == 2
    assert plan_model("DeepSeek-V3", layout=APART, mtp=4).planned.model.drafted == 4


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


def test_a_decode_computes_each_sequence_and_its_drafts() -> None:
    found = plan_model("DeepSeek-V3", layout=LAYOUT, hardware="H200", mtp=2, batch=32)
    decode = found.forecast.batches["decode"]
    assert (decode.tokens, decode.sequences) == (96, 32)
    assert "decode: 32 sequences a rank after 4,096 tokens each, 1 + 2 tokens of each" in str(
        found.forecast.assumptions
    )
    alone = plan_model("DeepSeek-V3", layout=LAYOUT, hardware="H200", batch=32)
    read_once = 2 * alone.forecast.phases[1].asked.forward.compute
    assert found.forecast.phases[1].asked.forward.compute < read_once, "weights are read once"


@pytest.mark.parametrize(("mtp", "moves"), [(None, "activations"), (1, "weights")])
def test_the_threshold_is_compared_with_the_tokens_of_drafts_too(mtp, moves) -> None:
    """64 sequences have 64 tokens, and 128 with a draft each."""
    options = {"move": "auto", "move_weights_from": 100}
    found = plan_model("DeepSeek-V3", layout=LAYOUT, hardware="H200", mtp=mtp, **options)
    (decode,) = [phase for phase in found.move.phases if phase.phase == "decode"]
    assert (decode.tokens, decode.moves) == (128 if mtp else 64, moves)
    slower = decode.weights_us if mtp else decode.activations_us
    assert found.failures("decode") == ("decode does not hide",)
    assert slower > 0.01 * decode.compute_us
