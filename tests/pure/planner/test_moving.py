"""`layershard plan --move`: the threshold, the section, and what a check asks of it."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest

from console import complaint, document, said
from vllm_layershard import Layout, plan_model
from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import ConfigError, PlanError
from vllm_layershard.planner.options import Options
from vllm_layershard.planner.results.move import Move
from vllm_layershard.planner.results.plan_result import PlanResult
from vllm_layershard.schema import validated

PLAN = ["plan", "--model", "DeepSeek-V3", "--dp", "8", "--ep", "--hardware", "H200"]


def _plan(**options: Any) -> PlanResult:
    layout = Layout(dp=8, ep=True)
    return plan_model("DeepSeek-V3", ["o_proj"], layout, hardware="H200", **options)


def _move(result: PlanResult) -> Move:
    assert result.move is not None
    return result.move


def test_the_threshold_that_is_found_stands_in_the_launch_line() -> None:
    result = _plan(move="auto")
    found = _move(result)
    assert found.move_weights_from == found.break_even_tokens
    assert result.launch is None or "move_weights_from" in result.launch
    (note,) = [text for text in result.warnings if text.startswith("--move auto")]
    assert f"{found.move_weights_from:,} tokens a rank" in note


def test_a_threshold_of_one_token_is_said_so() -> None:
    layout = Layout(dp=8, ep=True)
    options: dict[str, Any] = {"layer_stride": 3, "batch": 1, "move": "auto"}
    result = plan_model("DeepSeek-V3", "fused_qkv_a_proj", layout, hardware="H200", **options)
    assert _move(result).move_weights_from == 1
    (note,) = [text for text in result.warnings if text.startswith("--move auto")]
    assert "weights move from 1 token a rank on" in note
    flags = ["--layers", "fused_qkv_a_proj", "--layer-stride", "3", "--batch", "1"]
    text = said(*PLAN, *flags, "--move", "auto")
    assert not re.search(r"(?<![\d,])1 tokens", text)


def test_the_launch_line_is_the_plugins_own_configuration() -> None:
    layout = Layout(dp=8, ep=True)
    result = plan_model("DeepSeek-V3", ["o_proj"], layout, hardware="H200", move="auto")
    assert result.launch is not None
    told = json.loads(shlex.split(result.launch)[-1])
    config = validated(told["layer_sharding"])
    assert config == LayerShardConfig(
        ("o_proj",), move="auto", move_weights_from=_move(result).move_weights_from
    )
    again = plan_model("DeepSeek-V3", layout=layout, hardware="H200", config=config)
    assert _move(again) == _move(result)


def test_a_threshold_that_is_given_stays() -> None:
    found = _move(_plan(move="auto", move_weights_from=100))
    assert found.move_weights_from == 100
    assert found.break_even_tokens != 100


@pytest.mark.parametrize(
    ("rule", "tokens"),
    [
        ({"move": "auto", "move_weights_from": 100}, 99),
        ({"move": "auto", "move_weights_from": 100_000}, 8192),
        ({"move": "activations"}, 8192),
        ({"move": "activations", "tokens": 64, "batch": 64, "mtp": 1}, 128),
    ],
)
def test_the_memory_gathered_is_that_of_the_largest_forward_that_moves_them(
    rule: dict[str, Any], tokens: int
) -> None:
    """All eight ranks' tokens and results of o_proj, in two bytes each.

    The launch line bounds a forward, whatever the threshold is.
    """
    result = _plan(**rule)
    assert _move(result).gathered_bytes == 8 * tokens * 2 * (16384 + 7168)
    assert result.launch is not None
    words = shlex.split(result.launch)
    assert tokens <= int(words[words.index("--max-num-batched-tokens") + 1])


@pytest.mark.parametrize(
    ("rule", "moved", "said"),
    [
        ({"move": "auto"}, "weights", "weights from there on; decode"),
        ({"move": "activations"}, "activations", "but activations are planned in every"),
        (
            {"move": "auto", "move_weights_from": 5000},
            "activations",
            "weights from there on, but weights are planned from 5,000 tokens a rank on; decode",
        ),
    ],
)
def test_tokens_a_second_are_those_of_what_is_planned(
    rule: dict[str, Any], moved: str, said: str
) -> None:
    """H200: weights are quicker at the batch that the cache has room for, planned or not."""
    found = _move(_plan(**rule))
    full = found.sharded_decode
    assert full is not None
    clock = _move(_plan(**rule, batch=full.sequences)).phases[1]
    longer = clock.weights_us if moved == "weights" else clock.activations_us
    assert clock.activations_us > clock.weights_us
    assert full.step_us == pytest.approx(clock.compute_us + longer, abs=0.2)
    assert said in found.verdict
    assert f" where {moved} move: " in found.verdict


@pytest.mark.parametrize("rule", [{"move": "auto"}, {"move": "activations"}])
def test_what_the_plugin_refuses_of_a_layout_the_planner_refuses(rule: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="sequence parallelism of routed experts"):
        plan_model("DeepSeek-V3", ["o_proj"], Layout(tp=2, dp=4, ep=True), **rule)
    with pytest.raises(PlanError, match="dummy batches leave out attention's linears"):
        plan_model("DeepSeek-V3", ["o_proj"], Layout(dp=16, ep=True), hardware="910B2", **rule)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("GLM-5-FP8", "shared_experts.down_proj"),
        ("GLM-4.7", "shared_experts.gate_up_proj"),
        ("Ling-1T", "shared_experts.down_proj"),
        ("Qwen3-Next-80B-A3B-Instruct", "shared_expert.down_proj"),
        ("Qwen3.5-397B-A17B", "shared_expert_gate"),
    ],
)
def test_tokens_of_linears_that_the_experts_op_hides_are_refused(model: str, name: str) -> None:
    layout = Layout(dp=8)
    for rule in (Options(move="auto"), Options(move="activations")):
        with pytest.raises(PlanError, match=rf"{name} runs within vLLM's op of the routed expert"):
            plan_model(model, ["o_proj", name], layout, hardware="H200", **rule)
    assert plan_model(model, [name], layout, hardware="H200").series


def test_tokens_of_a_dense_mlp_beside_experts_and_outside_their_op_may_move() -> None:
    names = ["mlps.0.down_proj"]
    assert plan_model("LongCat-Flash-Chat", names, Layout(dp=8), move="activations").series


def test_linears_that_are_chosen_for_tokens_are_none_that_the_op_hides() -> None:
    chosen = plan_model("GLM-4.7", "auto", Layout(dp=8), hardware="H200", move="auto")
    assert chosen.sharding.layers == ("qkv_proj", "o_proj")
    weights = plan_model("GLM-4.7", "auto", Layout(dp=8), hardware="H200")
    assert any("shared_experts" in name for name in weights.sharding.layers)


def test_without_data_parallelism_an_npu_plans_it() -> None:
    layout = Layout(tp=8, ep=True)
    name = "fused_qkv_a_proj"
    result = plan_model("DeepSeek-V3", [name], layout, hardware="910B2", move="auto")
    assert _move(result).phases


def test_a_placement_that_moves_nothing_has_no_threshold() -> None:
    with pytest.raises(PlanError, match="no weight is shared here"):
        _plan(move="auto", placement="replicated")
    result = _plan(move="activations", placement="replicated")
    assert result.move is None
    said = "move 'activations': no weight is shared here, so that it changes nothing"
    assert said in result.warnings


def test_where_weights_move_nothing_is_said_of_it() -> None:
    assert _plan().move is None
    assert _plan(move="weights").move is None
    assert document(*PLAN, "--json")["move"] is None


def test_the_document_has_what_the_result_has() -> None:
    told = document(*PLAN, "--layers", "o_proj", "--move", "auto", "--json")
    found = _move(_plan(move="auto"))
    assert told["move"]["verdict"] == found.verdict
    assert told["sharding"]["move_weights_from"] == found.move_weights_from
    assert [phase["phase"] for phase in told["move"]["phases"]] == ["prefill", "decode"]


def test_the_text_has_the_verdict_and_both_ways() -> None:
    text = said(*PLAN, "--layers", "o_proj", "--move", "auto")
    assert _move(_plan(move="auto")).verdict in text
    assert "where weights move" in text
    assert "a part of the output, 797 of the input (not built)" in text


@pytest.mark.parametrize("batch", [64, 128])
@pytest.mark.parametrize("placement", ["round_robin", "striped"])
def test_a_decode_is_told_with_its_parts(batch: int, placement: Any) -> None:
    """DeepSeek-V3's o_proj on eight H200, where activations cost more than they spare."""
    layout = Layout(dp=8, ep=True)
    options: dict[str, Any] = {"hardware": "H200", "move": "auto", "placement": placement}
    result = plan_model("DeepSeek-V3", ["o_proj"], layout, batch=batch, **options)
    decode, device = _move(result).phases[1], result.forecast.hardware
    weight = 16384 * 7168
    owners, rows = 7 * 2 * (16384 + 7168), 7 * 2 * (16384 + 7168 // 8)
    stripes = placement == "striped"
    assert decode.activation_bytes == batch * (rows if stripes else owners)
    assert decode.weight_bytes == (weight * 7 // 8 if stripes else weight)
    assert decode.spared_bytes == (weight * 7 // 8 if stripes else 0)
    assert device.memory_bandwidth is not None
    rate = device.memory_bandwidth.value * device.memory_efficiency.value
    assert decode.spared_us == pytest.approx(decode.spared_bytes / rate * 1e6, abs=0.1)
    assert decode.product_tokens == 8 * batch
    assert decode.collectives == 2 * 61
    latency = device.latency.value + 8 * device.latency_per_rank.value
    assert decode.latency_us == pytest.approx(2e6 * latency, abs=0.1)
    assert decode.there_us + decode.back_us >= decode.latency_us
    assert decode.activations_us > decode.weights_us


def test_collectives_are_those_of_one_stage() -> None:
    """Of 61 layers over two stages the larger has 31."""
    layout = Layout(dp=4, pp=2, ep=True)
    found = _move(plan_model("DeepSeek-V3", ["o_proj"], layout, hardware="H200", move="auto"))
    assert [phase.collectives for phase in found.phases] == [2 * 31] * 2


def test_the_text_has_the_parts_too() -> None:
    command = [*PLAN, "--layers", "o_proj", "--move", "auto"]
    owners, rows = said(*command), said(*command, "--placement", "striped")
    said_of_decode = "it multiplies 512 tokens in the place of 64, and "
    assert f"{said_of_decode}reads the whole weight" in owners
    assert "a layer's activations are 20.12 MiB, where weights move 112.00 MiB" in owners
    assert f"{said_of_decode}spares reading 98.00 MiB of the weight" in rows


@pytest.mark.parametrize("move", ["weights", "activations"])
def test_a_check_judges_each_phase_as_it_moves(move: Any) -> None:
    result = _plan(move=move, batch=2)
    if move == "weights":
        hides = next(phase.hidden for phase in result.prefetch.phases if phase.phase == "decode")
    else:
        both = _move(result).phases[1]
        hides = both.activations_us <= 0.01 * both.compute_us
    assert ("decode does not hide" in result.failures(["decode"])) == (not hides)


def test_a_check_goes_by_the_threshold() -> None:
    """A prefill that hides where weights move does not where activations do."""
    layout = Layout(dp=8, ep=True)
    for threshold, failures in ((8192, ()), (8193, ("prefill does not hide",))):
        result = plan_model(
            "DeepSeek-V3",
            ["o_proj"],
            layout,
            hardware="H200",
            tokens=8192,
            move="auto",
            move_weights_from=threshold,
        )
        assert result.failures(["prefill"]) == failures


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"move": "tokens"}, "move = 'tokens': is not known"),
        ({"move_weights_from": 8}, "with move 'weights' every forward moves the same"),
        ({"move": "auto", "move_weights_from": 0}, "greater than or equal to 1"),
        ({"move": "auto", "token_exchange": ["o_proj"]}, "token_exchange"),
    ],
)
def test_what_cannot_be_planned_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _plan(**options)


def test_a_device_without_numbers_asks_for_the_threshold() -> None:
    code, words = complaint(
        "plan",
        "--model",
        "DeepSeek-V3",
        "--dp",
        "32",
        "--ep",
        "--hardware",
        "MI300X",
        "--move",
        "auto",
    )
    assert code == 3
    assert "--move-weights-from" in words
