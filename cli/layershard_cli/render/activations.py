"""What moves, weights or activations, as a part of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from layershard_cli.render.markup import bullets, escape, table
from layershard_cli.render.move import BESIDE
from layershard_cli.render.units import size
from vllm_layershard.estimate.wording import tokens
from vllm_layershard.planner.results.move import Move, MovedPhase

_LINEARS: Final = (
    "series",
    "stage",
    "layers",
    "ranks",
    "weight of a layer",
    "owner computes",
    "each computes a part of the output",
    "of the input (not built)",
)


def moved_section(found: Move, device: str) -> list[str]:
    """Threshold, bytes and times of both ways, and the memory of what is gathered: as HTML."""
    parts = [
        "<h2>Activations that move to a weight, in the place of the weight</h2>",
        f'<p id="move"><strong>{escape(found.verdict)}</strong> '
        f"(estimate for {escape(device)})</p>",
        f"<p>Planned: {escape(_rule(found))}.</p>",
        "<p>Fewest tokens a rank whose activations move as many bytes as the weight:</p>",
        table(_LINEARS, _linears(found)),
        f"<p>A rank gathers at most {size(found.gathered_bytes)} {escape(BESIDE)}.</p>",
    ]
    if found.phases:
        heads = ("one forward", *(phase.phase for phase in found.phases))
        parts += [table(heads, _rows(found.phases)), bullets(found.assumptions)]
    return parts


def _rule(found: Move) -> str:
    if found.move_weights_from is None:
        return "activations move in every forward"
    return (
        f"a forward moves weights from {tokens(found.move_weights_from)} a rank on, and "
        "activations below"
    )


def _linears(found: Move) -> list[tuple[str, ...]]:
    return [
        (
            linear.name,
            str(linear.pp_stage),
            f"{len(linear.layer_ids):,}",
            f"{linear.ranks:,}",
            size(linear.weight_bytes),
            f"{linear.owner_tokens:,}",
            f"{linear.output_tokens:,}",
            f"{linear.input_tokens:,}",
        )
        for linear in found.linears
    ]


def _rows(phases: Sequence[MovedPhase]) -> list[tuple[str, ...]]:
    """A row for each quantity, a column for each phase; of a layer it is a mean."""
    said: tuple[tuple[str, Callable[[MovedPhase], str]], ...] = (
        ("tokens a rank", lambda phase: f"{phase.tokens:,}"),
        ("moves in this plan", lambda phase: phase.moves),
        ("bytes of a layer's activations, there and back", lambda p: size(p.activation_bytes)),
        ("bytes of its weight, where that moves", lambda p: size(p.weight_bytes)),
        ("collectives of activations", lambda phase: f"{phase.collectives:,}"),
        ("the two of a layer take at least", lambda p: _us(p.latency_us)),
        ("a layer's activations there", lambda p: _us(p.there_us)),
        ("its product of all ranks' tokens", lambda p: _us(p.product_us)),
        ("tokens of that product", lambda phase: f"{phase.product_tokens:,}"),
        ("in the place of the product of its own", lambda p: _us(p.own_us)),
        ("reading of the weight that is spared", _spared),
        ("its results back", lambda p: _us(p.back_us)),
        *_without(phases),
        (
            "it is longer where activations move",
            lambda p: _longer(p.activations_us, p.activations_compute_us),
        ),
        ("it is longer where weights move", lambda p: _longer(p.weights_us, p.compute_us)),
    )
    return [(name, *map(cell, phases)) for name, cell in said]


def _without(phases: Sequence[MovedPhase]) -> list[tuple[str, Callable[[MovedPhase], str]]]:
    """The forward without sharding: two rows where each way loses most on another stage."""
    name = "the forward without sharding"
    if all(phase.activations_compute_us == phase.compute_us for phase in phases):
        return [(name, lambda p: _us(p.compute_us))]
    of_stage = f"{name}, of the stage that loses most"
    return [
        (f"{of_stage} by activations", lambda p: _us(p.activations_compute_us)),
        (f"{of_stage} by weights", lambda p: _us(p.compute_us)),
    ]


def _us(microseconds: float) -> str:
    return f"{microseconds:,.1f} us"


def _spared(phase: MovedPhase) -> str:
    return f"{size(phase.spared_bytes)}, {_us(phase.spared_us)}" if phase.spared_bytes else "none"


def _longer(microseconds: float, compute_us: float) -> str:
    return f"{_us(microseconds)}, {microseconds / compute_us:+.1%}"
