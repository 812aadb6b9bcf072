"""Move: what moves in which forward, weights or activations, and what decodes gain."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.estimate import Forecast, Hardware, PhaseName
from vllm_layershard.estimate.activations.judge import judge
from vllm_layershard.estimate.activations.outcome import BothWays, Served
from vllm_layershard.estimate.forwards.batches import (
    DECODE_CONTEXT,
    DECODE_SEQUENCES,
    PREFILL_TOKENS,
    decode,
    prefill,
)
from vllm_layershard.estimate.moved.linears import Moved
from vllm_layershard.models import Batch, Sharding
from vllm_layershard.plan.move import MoveRule, move_rule
from vllm_layershard.planner.results.document import microseconds


class MovedLinear(NamedTuple):
    """Linears of one series of a pipeline stage, in so many layers, over `ranks` ranks.

    Each of the last three is a number of tokens a rank: from there on it moves as many bytes as the
    weight would. `owner_tokens`: the owner computes for all; `output_tokens` and `input_tokens`:
    every rank computes for all tokens its part of the output (`striped`), or of the input, which is
    not served.
    """

    name: str
    pp_stage: int
    layer_ids: tuple[int, ...]
    ranks: int
    weight_bytes: int
    owner_tokens: int
    output_tokens: int
    input_tokens: int


class MovedPhase(NamedTuple):
    """One forward of `tokens` a rank, drafts included, each way; microseconds.

    By the plan's rule it moves what `moves` says, weights or activations.

    A layer's mean: its product at home `own_us`, and where activations move `there_us`,
    `product_us` and `back_us` in its place. The forward takes `activations_us` longer where
    activations move, `weights_us` where weights do. `compute_us` is the forward without sharding of
    the pipeline stage that loses most by weights, `activations_compute_us` that of the one that
    loses most by activations.

    Of a layer, a mean, on the rank that is asked most: `activation_bytes` that move there and back
    and `weight_bytes` that would come in their place; the product is of `product_tokens`, and
    leaves `spared_bytes` of the weight unread, which spares `spared_us` of its reading. The forward
    has so many `collectives`; two of them take at least `latency_us`.
    """

    phase: PhaseName
    tokens: int
    moves: str
    own_us: float
    there_us: float
    product_us: float
    back_us: float
    activations_us: float
    weights_us: float
    compute_us: float
    activations_compute_us: float
    activation_bytes: int
    weight_bytes: int
    product_tokens: int
    spared_bytes: int
    spared_us: float
    collectives: int
    latency_us: float


class FullDecode(NamedTuple):
    """Decodes of as many sequences a rank as the cache has room for.

    `tokens_per_second` counts one token of each sequence a step, as if no draft were accepted.
    """

    sequences: int
    step_us: float
    tokens_per_second: float


class Move(NamedTuple):
    """What is planned to move, the threshold that the planner finds, and both ways' times.

    `move_weights_from` is the plan's; None where it has none. `break_even_tokens` are the fewest
    tokens a rank whose weights expose no more than activations cost; None where activations are
    quicker however many there are, or nothing is estimated. `gathered_bytes`: memory of the
    activations that a rank gathers of the widest linear, at most.
    """

    move: str
    move_weights_from: int | None
    break_even_tokens: int | None
    verdict: str
    linears: tuple[MovedLinear, ...]
    phases: tuple[MovedPhase, ...]
    unsharded_decode: FullDecode | None
    sharded_decode: FullDecode | None
    gathered_bytes: int
    assumptions: tuple[str, ...]
    lacking: tuple[str, ...]


class LayoutMove(NamedTuple):
    """Of one layout among several what `Move` says, for forwards of the default sizes.

    A prefill of 8,192 tokens a rank is the largest forward. The threshold is of decodes after 4,096
    tokens; `lacking` names what the device lacks to find it.
    """

    move: str
    move_weights_from: int | None
    break_even_tokens: int | None
    gathered_bytes: int
    lacking: tuple[str, ...]


def layout_move_of(
    sharding: Sharding, hardware: Hardware, kv_cache_dtype: str
) -> LayoutMove | None:
    """What moves in which forward of a layout; None where weights do in each, or nothing does."""
    if sharding.config.move == "weights" or not sharding.moves:
        return None
    batches: dict[PhaseName, Batch] = {
        "prefill": prefill(PREFILL_TOKENS),
        "decode": decode(DECODE_SEQUENCES, DECODE_CONTEXT, sharding.model.drafted),
    }
    found = judge(sharding, hardware, batches, kv_cache_dtype)
    return LayoutMove(
        move=sharding.config.move,
        move_weights_from=sharding.config.move_weights_from,
        break_even_tokens=found.move_weights_from,
        gathered_bytes=found.gathered_bytes,
        lacking=found.lacking,
    )


def move_of(sharding: Sharding, forecast: Forecast, kv_cache_dtype: str) -> Move:
    """Judge both ways for the forecast's batches. The sharding moves something, in lockstep."""
    found = judge(sharding, forecast.hardware, forecast.batches, kv_cache_dtype)
    rule = move_rule(sharding.config)
    return Move(
        move=sharding.config.move,
        move_weights_from=sharding.config.move_weights_from,
        break_even_tokens=found.move_weights_from,
        verdict=found.verdict,
        linears=tuple(map(_linear, found.linears)),
        phases=tuple(_phase(name, both, rule) for name, both in found.phases.items()),
        unsharded_decode=_full(found.alone),
        sharded_decode=_full(found.shared),
        gathered_bytes=found.gathered_bytes,
        assumptions=found.assumptions,
        lacking=found.lacking,
    )


def _linear(one: Moved) -> MovedLinear:
    traffic = one.traffic
    return MovedLinear(
        name=one.name,
        pp_stage=one.pp_stage,
        layer_ids=one.layer_ids,
        ranks=traffic.ranks,
        weight_bytes=traffic.weight,
        owner_tokens=traffic.equal_owner_tokens,
        output_tokens=traffic.equal_output_tokens,
        input_tokens=traffic.equal_input_tokens,
    )


def _phase(name: PhaseName, both: BothWays, rule: MoveRule) -> MovedPhase:
    return MovedPhase(
        phase=name,
        tokens=both.batch.tokens,
        moves=rule.moved([both.batch.tokens]),
        own_us=microseconds(both.linear.own),
        there_us=microseconds(both.linear.there),
        product_us=microseconds(both.linear.product),
        back_us=microseconds(both.linear.back),
        activations_us=microseconds(both.activations),
        weights_us=microseconds(both.weights),
        compute_us=microseconds(both.weights_compute),
        activations_compute_us=microseconds(both.activations_compute),
        activation_bytes=round(both.load.moved),
        weight_bytes=round(both.load.arriving),
        product_tokens=round(both.load.multiplied),
        spared_bytes=round(both.load.spared),
        spared_us=microseconds(both.load.saved),
        collectives=both.collectives,
        latency_us=microseconds(both.load.latency),
    )


def _full(served: Served | None) -> FullDecode | None:
    if served is None:
        return None
    return FullDecode(served.sequences, microseconds(served.step), round(served.rate, 1))
