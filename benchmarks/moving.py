"""Cases of `moves.py`, and what the planner's functions say of them.

Half of the link is each of two ranks' where both send at once, as they do where each has some rows:
the kernel paces both directions together.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch

from vllm_layershard.config import Move, Placement
from vllm_layershard.estimate.broadcast import broadcast_seconds
from vllm_layershard.estimate.exchange.collectives import (
    all_gather_seconds,
    all_to_all_seconds,
    rooted_seconds,
)
from vllm_layershard.estimate.figure import Figure
from vllm_layershard.estimate.forwards.movements import movements
from vllm_layershard.estimate.forwards.overlap import TimedLayer, TimedOperation, simulate
from vllm_layershard.estimate.forwards.thresholds import fewest_tokens
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.moved.bytes_moved import BytesMoved
from vllm_layershard.estimate.nodes import Spread
from vllm_layershard.estimate.pull import pull_seconds
from vllm_layershard.plan import Series, build_plan

LAYERS = 6
INNER, WIDTH = 4096, 1792
"""A quarter of DeepSeek-V3's o_proj: 14 MiB in bf16."""

COMPUTE_S, COMPUTE_A_TOKEN_S = 3e-3, 20e-6
PRODUCT_S, PRODUCT_A_TOKEN_S = 5e-4, 1e-6
LATENCY_S = 3e-4
"""Of a collective over gloo: two threads wake each other."""
MEMORY_BYTES_A_S = 1e10
"""Of one core: a pull copies the rank's own stripe within its memory."""

IN_A_ROUND_S = 0.35
"""For so long each way runs in a round: the shortest forwards take 27 to 71 ms, of equal work."""

TOKENS = (8, 32, 128, 256, 512, 1024, 2048, 4096)
PLACEMENTS: tuple[Placement, ...] = ("round_robin", "striped")


@dataclass(frozen=True, slots=True)
class Case:
    """So many tokens on each of so many ranks; `auto` moves weights from `weights_from` on."""

    ranks: int
    tokens: int
    rounds: int
    weights_from: int
    slept: bool = True
    placement: Placement = "round_robin"

    @property
    def traffic(self) -> BytesMoved:
        """What the planner says of one linear."""
        weight = INNER * WIDTH * torch.bfloat16.itemsize
        return BytesMoved(self.ranks, INNER, WIDTH, torch.bfloat16.itemsize, weight)

    @property
    def formula(self) -> dict[str, float]:
        """Bytes of a forward each way, all ranks together."""
        traffic, tokens = self.traffic, self.tokens
        if self.placement == "striped":
            each = traffic.weights_striped(), traffic.by_output(tokens)
            weights, activations = (self.ranks * one for one in each)
        else:
            weights = (self.ranks - 1) * traffic.weight
            activations = traffic.owner_computes(tokens)
        return {"weights": LAYERS * weights, "activations": LAYERS * activations}

    def moves(self, way: Move) -> Move:
        """What forwards of this way move."""
        if way != "auto":
            return way
        return "weights" if self.tokens >= self.weights_from else "activations"

    def forwards(self, way: Move, gbit: float) -> int:
        """Of one round, the same on every rank; one where only bytes are counted."""
        if not self.slept:
            return 1
        return ceil(IN_A_ROUND_S / planned_seconds(self, gbit)[self.moves(way)])

    def pulled_seconds(self, gbit: float) -> float:
        """What the other ranks' stripes of a layer take on this rank's part of the link."""
        return self.traffic.weights_striped() * 8 / (gbit / self.ranks * 1e9)


def compute_seconds(tokens: int) -> float:
    """What a layer computes beside its linear."""
    return max(COMPUTE_S, tokens * COMPUTE_A_TOKEN_S)


def product_seconds(tokens: int, share: float = 1.0) -> float:
    """What the linear takes, or such a share of its rows."""
    return max(PRODUCT_S, tokens * PRODUCT_A_TOKEN_S * share)


def hardware_of(gbit: float) -> Hardware:
    """The link as a device's profile has it."""

    def figure(value: float) -> Figure:
        return Figure(value, "measured", "paced by the kernel")

    return Hardware(
        "paced",
        memory_bandwidth=figure(MEMORY_BYTES_A_S),
        memory_efficiency=figure(1.0),
        intra_node=figure(gbit / 8 * 1e9),
        link_efficiency=figure(1.0),
        latency=figure(LATENCY_S),
        latency_per_rank=Figure(0.0, "assumed", "two ranks"),
    )


def planned_seconds(case: Case, gbit: float) -> dict[str, float]:
    """A forward each way, as the planner's functions have it."""
    spread = Spread(case.ranks, domains=1, in_a_domain=case.ranks)
    tokens, traffic, striped = case.tokens, case.traffic, case.placement == "striped"
    there, back = (tokens * columns * traffic.element for columns in (INNER, WIDTH))
    if striped:
        hardware = hardware_of(gbit / case.ranks)
        fetch = pull_seconds(traffic.weight, spread, hardware, striped=True)
        of_all = (
            all_gather_seconds(case.ranks * there, spread, hardware)
            + product_seconds(case.ranks * tokens, 1 / case.ranks)
            + all_to_all_seconds(back, spread, hardware)
        )
    else:
        hardware = hardware_of(gbit)
        fetch = broadcast_seconds(traffic.weight, spread, hardware)
        of_all = (
            rooted_seconds(there, spread, hardware)
            + product_seconds(case.ranks * tokens)
            + rooted_seconds(back, spread, hardware)
        )
    series = Series("o_proj", tuple(range(LAYERS)), traffic.weight)
    plan = build_plan([series], case.ranks, prefetch_step=1, placement=case.placement)
    half = TimedOperation("", compute_seconds(tokens) / 2)
    own = TimedOperation("o_proj", product_seconds(tokens))
    layers = [TimedLayer(layer, (half, own, half)) for layer in range(LAYERS)]
    moves = movements(plan, [[f"layers.{i}.o_proj" for i in range(LAYERS)]], lambda _: fetch)
    return {
        "weights": simulate(layers, moves).total,
        "activations": LAYERS * (compute_seconds(tokens) + of_all),
    }


def planned_threshold(gbit: float, placement: Placement = "round_robin") -> int:
    """From so many tokens on weights are as quick, as the planner looks for it."""

    def progress(tokens: int) -> float:
        both = planned_seconds(Case(2, tokens, 0, 1, placement=placement), gbit)
        return both["activations"] - both["weights"]

    found = fewest_tokens(progress, TOKENS[0], TOKENS[-1])
    assert found is not None, "the products of all ranks take longer than their own"
    return found
