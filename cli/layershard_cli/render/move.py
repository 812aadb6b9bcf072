"""What moves, weights or activations, for a person."""

from __future__ import annotations

from layershard_cli.render.sheet import Sheet
from layershard_cli.render.units import size
from vllm_layershard.estimate.wording import layers, tokens
from vllm_layershard.planner.results.move import MovedLinear, MovedPhase
from vllm_layershard.planner.results.plan_result import PlanResult

BESIDE = (
    "beside its own activations, taken from the room for the cache; vLLM's own peak is not counted"
)
"""Of what a rank gathers."""


def print_move(sheet: Sheet, result: PlanResult) -> None:
    """Bytes, times and verdict; the plan may move activations."""
    found = result.move
    assert found is not None, "it was asked"
    sheet.line("Activations that move to a weight, in the place of the weight")
    sheet.pairs(
        [
            *((linear.name, _bytes(linear)) for linear in found.linears),
            ("gathered", f"at most {size(found.gathered_bytes)} a rank {BESIDE}"),
            *((f"{phase.phase}, {tokens(phase.tokens)}", _times(phase)) for phase in found.phases),
            *((f"{phase.phase}'s parts", _parts(phase)) for phase in found.phases),
            ("move", f"{found.verdict} (estimate for {result.forecast.hardware.name})"),
        ]
    )
    for assumption in found.assumptions if found.phases else ():
        sheet.line(f"  - {assumption}")


def _bytes(linear: MovedLinear) -> str:
    return (
        f"{layers(len(linear.layer_ids))} of {size(linear.weight_bytes)}, over {linear.ranks} "
        f"ranks; moves as many bytes as the weight from {tokens(linear.owner_tokens)} a rank where "
        f"the owner computes, from {linear.output_tokens:,} where each computes a part of the "
        f"output, {linear.input_tokens:,} of the input (not built)"
    )


def _times(phase: MovedPhase) -> str:
    return (
        f"a layer there {phase.there_us:,.1f} us, product {phase.product_us:,.1f} in the place of "
        f"{phase.own_us:,.1f}, back {phase.back_us:,.1f}; "
        f"{phase.activations_us / phase.activations_compute_us:+.1%} of the forward's compute, "
        f"where weights move {phase.weights_us / phase.compute_us:+.1%}"
    )


def _parts(phase: MovedPhase) -> str:
    """On the rank that is asked most: the owner, or the one that has most rows."""
    spared = f"spares reading {size(phase.spared_bytes)} of the weight, {phase.spared_us:,.1f} us"
    return (
        f"a layer's activations are {size(phase.activation_bytes)}, where weights move "
        f"{size(phase.weight_bytes)}; {phase.collectives:,} collectives, at least "
        f"{phase.latency_us:,.1f} us for the two of a layer; it multiplies "
        f"{tokens(phase.product_tokens)} in the place of {phase.tokens:,}, and "
        f"{spared if phase.spared_bytes else 'reads the whole weight'}"
    )
