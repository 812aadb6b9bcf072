"""One layer in another precision: it stays whole on every rank, and every answer says so."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from console import layershard, said
from vllm_layershard import Layout, map_layers, plan_model
from vllm_layershard.errors import PlanError

LAYERS, HIDDEN, HEADS, HEAD = 12, 1024, 16, 64
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 4,
    "head_dim": HEAD,
    "intermediate_size": 2048,
    "num_hidden_layers": LAYERS,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
ROWS = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
GROUP = {"targets": ["Linear"], "weights": ROWS, "input_activations": None}


def compressed(layer: int) -> dict[str, Any]:
    group = GROUP | {"input_activations": ROWS | {"strategy": "token", "dynamic": True}}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"g": group},
        "ignore": ["lm_head", f"re:model\\.layers\\.{layer}\\..*"],
    }


def by_tensor(layer: int) -> dict[str, Any]:
    left = [f"model.layers.{layer}.self_attn.{x}_proj" for x in "qkvo"]
    return {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": left}


@pytest.fixture
def model(tmp_path: Path):
    def write(section: dict[str, Any]) -> str:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(QWEN3 | {"quantization_config": section}))
        return str(path)

    return write


@pytest.mark.parametrize("section", [compressed, by_tensor], ids=["compressed", "fp8"])
@pytest.mark.parametrize("layer", [0, 5, LAYERS - 1])
@pytest.mark.parametrize("placement", ["round_robin", "striped"])
def test_the_odd_layer_stays_and_the_others_are_shared(section, layer, placement, model):
    path = model(section(layer))
    result = plan_model(
        path, ["o_proj"], Layout(dp=2), placement=placement, prefetch_step=2, hardware="H200"
    )
    odd, others = sorted(result.series, key=lambda s: len(s.layer_ids))
    weight = HIDDEN * HEADS * HEAD  # of one o_proj, a byte each in fp8
    assert (odd.name, odd.layer_ids, odd.owner) == (f"o_proj@{layer}", (layer,), (-1,))
    assert (odd.layer_bytes, odd.num_slots, odd.slot_bytes) == (2 * weight, 0, 0)
    assert odd.resident_bytes == (2 * weight,) * 2
    assert odd.saved_bytes == (0, 0)
    stored = [weight * sum(i % 2 == rank for i in range(LAYERS) if i != layer) for rank in (0, 1)]
    if placement == "striped":
        stored = [weight * (LAYERS - 1) // 2] * 2
    assert others.resident_bytes == tuple(stored)
    assert others.saved_bytes == tuple((LAYERS - 1) * weight - s - 3 * weight for s in stored)
    assert result.memory.saved_bytes_min == min(others.saved_bytes)
    (note,) = [line for line in result.warnings if f"o_proj@{layer}" in line]
    assert note == (
        f"series o_proj@{layer}: layer {layer} has another precision or shape than the others of "
        "o_proj, so it shares no slot with them and stays whole on every rank"
    )


def test_the_map_the_ledger_and_the_check_name_the_odd_layer(model):
    path = model(compressed(0))
    mapped = map_layers(path, ["o_proj"], Layout(dp=2))
    one = {s.name: s for s in mapped.groups[0].series}["o_proj@0"]
    assert (one.owner, one.owned_layers) == ((-1,), ((0,), (0,)))
    flags = ["--model", path, "--dp", "2"]
    drawn = said("map", *flags, "--layers", "o_proj").splitlines()
    assert ["0", "every", "rank", "-"] in [line.split() for line in drawn]
    ledger = said("plan", *flags, "--layers", "o_proj", "--ledger")
    assert ["o_proj@0", "0", "1", "2,097,152", "2,097,152", "0", "0"] in [
        line.split() for line in ledger.splitlines()
    ]
    assert "1 layer of 2,097,152 bytes over 2 ranks, 0 slots" in said("check", '["o_proj"]', *flags)


def test_the_defaults_of_a_model_with_an_odd_layer_are_planned(model):
    """Nobody named a linear, so that nobody could leave one out."""
    path = model(compressed(0))
    result = plan_model(path, hardware="H200")
    assert {s.name for s in result.series if s.owner == (-1,)} == {"qkv_proj@0", "o_proj@0"}
    assert min(phase.best.step for phase in result.forecast.phases) > 0, "it bounds no step"
    auto = layershard("plan", "--model", path, "--dp", "2", "--layers", "auto")
    assert "qkv_proj@0 out" not in auto.stderr


def last_too(number: int) -> dict[str, Any]:
    """The first layer and the last ones, so many in all, are not quantised."""
    section = compressed(0)
    section["ignore"] += [rf"re:model\.layers\.{LAYERS - i}\..*" for i in range(1, number)]
    return section


@pytest.mark.parametrize(("number", "step", "remedy"), [(2, 1, ""), (2, 3, ""), (3, 2, "1")])
def test_few_odd_layers_stay_whole_too(number, step, remedy, model):
    """Their slots would hold them all: a movement that saves nothing, in no phase."""
    path = model(last_too(number))
    plan = functools.partial(plan_model, path, ["o_proj"], Layout(dp=2), hardware="H200")
    result = plan(prefetch_step=step)
    odd, others = sorted(result.series, key=lambda s: len(s.layer_ids))
    assert (odd.name, odd.owner, odd.num_slots) == ("o_proj@0", (-1,) * number, 0)
    assert odd.resident_bytes == (number * 2 * HIDDEN * HEADS * HEAD,) * 2
    assert others.num_slots == step + 1
    assert result.memory.saved_bytes_min == min(others.saved_bytes) > 0
    (note,) = [line for line in result.warnings if "o_proj@0" in line]
    helped = f"; a prefetch_step of at most {remedy} moves them" if remedy else ""
    assert note == (
        f"series o_proj@0: {number} layers with another precision or shape than the others of "
        f"o_proj, and no more than the slots of prefetch_step {step} hold, so all stay whole on "
        f"every rank{helped}"
    )
    if remedy:
        lower = {s.name: s for s in plan(prefetch_step=int(remedy)).series}
        assert lower["o_proj@0"].num_slots > 0


def test_a_pair_stays_whole_in_the_map_and_in_the_check(model):
    path = model(last_too(2))
    flags = ["--model", path, "--dp", "2"]
    mapped = json.loads(said("map", *flags, "--layers", "o_proj", "--json"))
    planned = plan_model(path, ["o_proj"], Layout(dp=2))
    digests = [group["digest"] for group in mapped["groups"]]
    assert digests == [group.plan.digest() for group in planned.planned.groups]
    checked = said("check", '["o_proj"]', *flags)
    assert "o_proj@0: 2 layers of 2,097,152 bytes over 2 ranks, 0 slots" in checked


@pytest.mark.parametrize("layer", [0, 1])
def test_two_layers_of_two_forms_are_planned_without_a_flag(layer, model):
    """No linear was named and no step given, so that no refusal could be heeded."""
    path = Path(model(by_tensor(layer)))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 2}))
    result = plan_model(str(path), hardware="H200")
    assert {s.name: s.num_slots for s in result.series}["o_proj@0"] == 0
    assert result.forecast.verdict.startswith(
        "do not enable it: a rank saves nothing (0 bytes); nothing "
    )
    flags = ["--model", str(path), "--dp", "2"]
    assert "nothing moves: every layer stays whole on every rank" in said(
        "plan", *flags, "--hardware", "H200"
    )
    checked = said("check", '["o_proj"]', *flags)
    assert checked.startswith("valid, but do not enable it: ")


def test_halves_are_refused_with_a_step_that_moves_neither(model):
    path = model(last_too(LAYERS // 2))
    with pytest.raises(PlanError) as refused:
        plan_model(path, ["o_proj"], Layout(dp=2), prefetch_step=5, hardware="H200")
    assert str(refused.value) == (
        "series 'o_proj@0' has 6 layers, and no other of 'o_proj' has more; prefetch_step 5 needs "
        "at least 7: lower it to at most 4 or leave 'o_proj' out"
    )
