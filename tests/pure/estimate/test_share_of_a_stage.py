"""What a forward loses is a share of its own stage's compute, whichever way loses most where."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_layershard import Layout, plan_model
from vllm_layershard.estimate import Hardware
from vllm_layershard.estimate.roofline import Roofline
from vllm_layershard.estimate.wording import percent
from vllm_layershard.models import Batch, layer_operations
from vllm_layershard.plan import stage_layers
from vllm_layershard.planner.hardware import load_hardware
from vllm_layershard.planner.results.move import MovedPhase
from vllm_layershard.planner.results.plan_result import PlanResult

LAYOUT = Layout(dp=2, pp=3, ep=True)
"""Of DeepSeek-V3: 20, 21 and 20 layers, the first three of which are dense."""


def _result(hardware: Hardware) -> PlanResult:
    return plan_model(
        "DeepSeek-V3", ["o_proj"], LAYOUT, hardware=hardware, move="activations", batch=2
    )


def _decode(result: PlanResult) -> MovedPhase:
    assert result.move is not None
    return result.move.phases[1]


def _quicker(hardware: Hardware, share: float) -> Hardware:
    """With such a share of the latencies of collectives."""
    latency, per_rank = hardware.latency, hardware.latency_per_rank
    return replace(
        hardware,
        latency=latency._replace(value=share * latency.value),
        latency_per_rank=per_rank._replace(value=share * per_rank.value),
    )


def test_each_way_has_the_compute_of_the_stage_that_it_slows_most() -> None:
    """Activations slow most the stage of most layers, weights the one that computes least."""
    result = _result(load_hardware("H200"))
    decode, planned = _decode(result), result.planned
    roofline = Roofline(result.forecast.hardware)
    batch = Batch(2, 4096, decode=True)
    layers = stage_layers(61, LAYOUT.pp)
    compute_us = [
        1e6
        * sum(
            roofline.seconds(operation)
            for layer_id in stage
            for operation in layer_operations(
                planned.model.blueprint, layer_id, planned.deployment, batch
            )
        )
        for stage in layers
    ]
    most = max(range(len(layers)), key=lambda stage: len(layers[stage]))
    assert decode.collectives == 2 * len(layers[most])
    assert decode.activations_compute_us == pytest.approx(compute_us[most], abs=0.1)
    assert decode.compute_us == pytest.approx(min(compute_us), abs=0.1)
    assert decode.compute_us < 0.95 * decode.activations_compute_us
    assert result.move is not None
    activations = decode.activations_us / decode.activations_compute_us
    weights = decode.weights_us / decode.compute_us
    assert (
        f"slows by {percent(activations)} where activations move, by {percent(weights)} where "
        "weights do"
    ) in result.move.verdict


def test_a_check_goes_by_the_share_of_that_stage() -> None:
    """Latencies between the two at which activations are 1 % of either stage's compute."""
    device = load_hardware("H200")
    half, whole = _decode(_result(_quicker(device, 0.5))), _decode(_result(device))
    wanted = 0.01 * (whole.compute_us + whole.activations_compute_us) / 2
    share = 1 - (whole.activations_us - wanted) / (2 * (whole.activations_us - half.activations_us))
    result = _result(_quicker(device, share))
    decode = _decode(result)
    assert 0.01 * decode.compute_us < decode.activations_us < 0.01 * decode.activations_compute_us
    assert result.failures(["decode"]) == ()
    slower = _result(_quicker(device, 1.2 * share))
    assert slower.failures(["decode"]) == ("decode does not hide",)
