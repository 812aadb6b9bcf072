"""Judges an exchange of tokens: from how many tokens on it gains time, and what a decode loses."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from vllm_layershard.estimate.exchange.collectives import (
    all_gather_seconds,
    all_reduce_seconds,
    all_to_all_seconds,
    lacking,
)
from vllm_layershard.estimate.exchange.linears import Alike, alike, held
from vllm_layershard.estimate.exchange.outcome import ExchangeOutcome, ExchangeTimes, LinearTime
from vllm_layershard.estimate.exchange.verdict import verdict_on
from vllm_layershard.estimate.forwards.thresholds import MAX_TOKENS
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.nodes import Spread, widest
from vllm_layershard.estimate.outcome import PhaseName
from vllm_layershard.estimate.roofline import Roofline
from vllm_layershard.models import Batch, Sharding, layer_operations
from vllm_layershard.models.exchange import without_exchange
from vllm_layershard.models.layer_operations import product


def judge(
    sharding: Sharding, hardware: Hardware, batches: Mapping[PhaseName, Batch]
) -> ExchangeOutcome:
    """Compare each batch's forward with plain tensor parallelism. The sharding exchanges."""
    linears = alike(sharding)
    spread = _spread(sharding, hardware)
    lacks = lacking(spread, hardware)
    phases: dict[PhaseName, ExchangeTimes] = {}
    wins_from = None
    if not lacks:
        clock = _Clock(sharding, hardware, spread, linears)
        phases = {name: clock.times(batch) for name, batch in batches.items()}
        wins_from = _wins_from(clock, linears)
    return ExchangeOutcome(
        linears=linears,
        held=held(sharding, linears),
        verdict=verdict_on(linears, phases, wins_from, hardware, lacks),
        phases=phases,
        wins_from=wins_from,
        unhidden=_unhidden(sharding, linears),
        lacking=lacks,
        assumptions=_assumptions(hardware, spread),
    )


def _spread(sharding: Sharding, hardware: Hardware) -> Spread:
    """How the tensor-parallel ranks of a stage lie on nodes."""
    layout = sharding.deployment.layout
    starts = range(0, layout.world_size, layout.tp)
    return widest([range(i, i + layout.tp) for i in starts], int(hardware.node_size.value))


class _Clock:
    """Times the exchanged linears of one sharding on one device."""

    def __init__(
        self, sharding: Sharding, hardware: Hardware, spread: Spread, linears: tuple[Alike, ...]
    ) -> None:
        self._sharding = sharding
        self._hardware = hardware
        self._spread = spread
        self._linears = linears
        self._roofline = Roofline(hardware)
        self._layers = sum(len(one.layer_ids) for one in linears)

    def times(self, batch: Batch) -> ExchangeTimes:
        """Of one forward."""
        tokens = batch.tokens
        return ExchangeTimes(
            tokens=tokens,
            rows=self._linears[0].traffic.rows(tokens),
            layers=self._layers,
            split=self._mean([self._split(one, tokens) for one in self._linears]),
            whole=self._mean([self._whole(one, tokens) for one in self._linears]),
            forward=self._forward(batch),
        )

    def longer(self, tokens: int) -> float:
        """Seconds by which the linears of a forward take longer."""
        return sum(
            len(one.layer_ids) * (self._whole(one, tokens).total - self._split(one, tokens).total)
            for one in self._linears
        )

    def _mean(self, times: list[LinearTime]) -> LinearTime:
        counts = [len(one.layer_ids) for one in self._linears]
        sums = (
            sum(count * value for count, value in zip(counts, values, strict=True))
            for values in zip(*times, strict=True)
        )
        return LinearTime(*(total / self._layers for total in sums))

    def _split(self, one: Alike, tokens: int) -> LinearTime:
        blueprint = self._sharding.model.blueprint
        operation = product(blueprint, one.first.split_shape, one.first.split, tokens)
        message = tokens * one.traffic.width * one.traffic.element
        return LinearTime(
            self._roofline.seconds(operation),
            all_reduce_seconds(message, self._spread, self._hardware),
        )

    def _whole(self, one: Alike, tokens: int) -> LinearTime:
        blueprint, traffic = self._sharding.model.blueprint, one.traffic
        rows = traffic.rows(tokens)
        operation = product(blueprint, one.first.whole_shape, one.first.whole, rows)
        there = rows * traffic.inner * traffic.element
        back = rows * traffic.ranks * traffic.width * traffic.element
        return LinearTime(
            self._roofline.seconds(operation),
            all_to_all_seconds(there, self._spread, self._hardware)
            + all_gather_seconds(back, self._spread, self._hardware),
        )

    def _forward(self, batch: Batch) -> float:
        """Compute of all layers without an exchange; collectives are not counted."""
        model, plain = self._sharding.model, without_exchange(self._sharding.deployment)
        return sum(
            self._roofline.seconds(operation)
            for layer_id in range(model.num_layers)
            for operation in layer_operations(model.blueprint, layer_id, plain, batch)
        )


def _wins_from(clock: _Clock, linears: tuple[Alike, ...]) -> int | None:
    """The fewest tokens of a forward that gains, as do all with more; None if there are none.

    An exchange that sends no fewer bytes gains nothing: what a rank of few columns saves by
    reading fewer activations is the roofline's, not a device's.
    """
    if sum(len(one.layer_ids) * one.traffic.saved_a_token for one in linears) <= 0:
        return None
    if clock.longer(MAX_TOKENS) >= 0:
        return None
    enough = MAX_TOKENS
    while enough > 1 and clock.longer(enough // 2) < 0:
        enough //= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if clock.longer(middle) < 0:
            enough = middle
        else:
            too_few = middle
    return enough


def _unhidden(sharding: Sharding, linears: tuple[Alike, ...]) -> int | None:
    """Tokens of a forward whose bytes saved are as many as its weights that move."""
    saved = sum(len(one.layer_ids) * one.traffic.saved_a_token for one in linears)
    if saved <= 0:
        return None
    moved = sum(
        len(series_plan.series) * series_plan.series.layer_bytes
        for group in sharding.groups
        for series_plan, members in zip(group.plan.series, group.linears, strict=True)
        if series_plan.moves and any(map(members[0].is_named, sharding.deployment.exchange))
    )
    return ceil(moved / saved)


def _assumptions(hardware: Hardware, spread: Spread) -> tuple[str, ...]:
    rate = (
        f"at the bus bandwidth of {hardware.bus[0].source}"
        if hardware.bus
        else f"at {hardware.link_efficiency.value} of the link within a node"
    )
    across = (
        "; between nodes a ring enters by all NICs of its ranks, and each rank's part of an "
        "all-to-all leaves by its own"
        if spread.domains > 1
        else ""
    )
    latency = hardware.latency.value + hardware.latency_per_rank.value * spread.ranks
    return (
        f"collectives of activations {rate}, {latency * 1e6:.1f} us each at least{across}; nothing "
        "hides them",
        "a one-shot all-reduce for few tokens, and one that is fused with the norm behind it, are "
        "quicker than counted, and an exchange has neither",
    )
