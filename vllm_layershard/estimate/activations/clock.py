"""Clock: times the linears of one sharding whose activations move, on one device."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_layershard.estimate.activations.dense_mlps import split_seconds, split_spread
from vllm_layershard.estimate.activations.outcome import BothWays, LinearLoad, LinearTime
from vllm_layershard.estimate.activations.timeline import moved_forward
from vllm_layershard.estimate.exchange.collectives import (
    all_gather_seconds,
    all_to_all_seconds,
    lacking,
    latency_seconds,
    rooted_seconds,
)
from vllm_layershard.estimate.forwards.forwards import Forwards
from vllm_layershard.estimate.forwards.overlap import Forward
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.moved.linears import Moved, moved_linears
from vllm_layershard.estimate.roofline import Roofline
from vllm_layershard.estimate.transfer import Transfer
from vllm_layershard.models import Batch, Sharding
from vllm_layershard.models.layer_operations import product
from vllm_layershard.models.operation import Operation


class Clock:
    """Both ways of one sharding. The hardware lacks no number."""

    def __init__(self, sharding: Sharding, hardware: Hardware, linears: tuple[Moved, ...]) -> None:
        self._sharding = sharding
        self._hardware = hardware
        self._linears = linears
        self._roofline = Roofline(hardware)
        self._forwards = Forwards(sharding, hardware)

    def both(self, batch: Batch) -> BothWays:
        """One forward, each way."""
        weights = self._forwards.run(batch, self._sharding.config.prefetch_step)
        tokens = batch.tokens
        counts = [len(one.layer_ids) for one in self._linears]
        most, activations, compute = self._most(batch)
        return BothWays(
            batch=batch,
            layers=sum(counts),
            linear=LinearTime(*_mean(counts, [self.linear(one, tokens) for one in self._linears])),
            load=LinearLoad(*_mean(counts, [self._load(one, tokens) for one in self._linears])),
            collectives=2 * sum(len(o.layer_ids) for o in self._linears if o.pp_stage == most),
            activations=activations,
            activations_compute=compute,
            weights=weights.exposed,
            weights_compute=weights.compute,
        )

    def round_of(self, decodes: Sequence[tuple[Batch, str]]) -> float:
        """Seconds in which each of the decodes in flight passes all pipeline stages once.

        Each is a batch and what it moves; "": nothing. Transfers between stages are not counted.
        """
        stages = {one: self._by_stage(*one) for one in set(decodes)}
        return round_seconds([stages[one] for one in decodes])

    def _by_stage(self, batch: Batch, moves: str) -> list[float]:
        """Seconds of each pipeline stage's forward, which moves this; "": nothing.

        One that moves something has its dense MLPs in parts, if they are split.
        """
        longer = self._stages(batch.tokens)
        forwards = self._forwards.by_stage(batch, self._sharding.config.prefetch_step)
        if not moves:
            return [one.compute for one in forwards]
        parts = split_seconds(self._sharding, self._hardware, batch.tokens)
        if moves == "activations":
            return [one.compute + longer.get(i, 0.0) + parts[i] for i, one in enumerate(forwards)]
        return [one.total + part for one, part in zip(forwards, parts, strict=True)]

    def trace(self, batch: Batch) -> Forward:
        """One forward whose activations move, with its timeline, of the stage that loses most."""
        most, _, _ = self._most(batch)
        moved: dict[tuple[int, str], LinearTime] = {}
        for one in self._linears:
            if one.pp_stage == most:
                times = self.linear(one, batch.tokens)
                moved |= dict.fromkeys(zip(one.layer_ids, one.suffixes, strict=True), times)
        return moved_forward(self._forwards.stage(batch, most), moved)

    def longer(self, tokens: int) -> float:
        """Seconds by which activations that move lengthen the stage that loses most."""
        return max(self._stages(tokens).values())

    def _most(self, batch: Batch) -> tuple[int, float, float]:
        """The stage that loses most by activations, by how much, and its compute; seconds.

        Of stages that lose alike, to a picosecond, the one that computes least.
        """
        each = []
        for stage, longer in self._stages(batch.tokens).items():
            layers = self._forwards.stage(batch, stage)
            compute = sum(one.seconds for layer in layers for one in layer.operations)
            each.append((stage, longer, compute))
        return max(each, key=lambda one: (round(one[1], 12), -one[2]))

    def _stages(self, tokens: int) -> dict[int, float]:
        """By stage, the seconds by which activations that move lengthen it."""
        stages: dict[int, float] = {}
        for one in self._linears:
            longer = len(one.layer_ids) * self.linear(one, tokens).longer
            stages[one.pp_stage] = stages.get(one.pp_stage, 0.0) + longer
        return stages

    def _load(self, one: Moved, tokens: int) -> LinearLoad:
        traffic, hardware = one.traffic, self._hardware
        rate = hardware.memory_bandwidth
        assert rate is not None, "lacking() names it"
        spared = one.linear.tensors[0].nbytes * (1 - one.largest_part)
        moved = traffic.by_output if one.by_rows else traffic.owner_computes
        return LinearLoad(
            moved=moved(tokens),
            arriving=traffic.weights_striped() if one.by_rows else traffic.weight,
            spared=spared,
            latency=2 * latency_seconds(one.spread, hardware),
            saved=spared / (rate.value * hardware.memory_efficiency.value),
            multiplied=traffic.ranks * tokens,
        )

    def linear(self, one: Moved, tokens: int) -> LinearTime:
        """One layer of a linear, with so many tokens on each rank.

        Its owner computes for all, or each rank some rows for all.
        """
        spread, hardware, blueprint = one.spread, self._hardware, self._sharding.model.blueprint
        ranks, element = one.traffic.ranks, one.traffic.element
        own = product(blueprint, one.shape, one.linear, tokens)
        of_all = product(blueprint, one.shape, one.linear, ranks * tokens)
        there, back = tokens * one.shape.inner * element, tokens * one.shape.rows * element
        if one.by_rows:
            seconds = (
                all_gather_seconds(ranks * there, spread, hardware),
                self._roofline.seconds(_of_rows(of_all, one, ranks * tokens)),
                all_to_all_seconds(back, spread, hardware),
            )
        else:
            seconds = (
                rooted_seconds(there, spread, hardware),
                self._roofline.seconds(of_all),
                rooted_seconds(back, spread, hardware),
            )
        return LinearTime(self._roofline.seconds(own), *seconds)


def round_seconds(decodes: Sequence[Sequence[float]]) -> float:
    """Seconds in which each decode passes all stages once, while all of them are in flight.

    Decode d takes `decodes[d][s]` seconds, t_ds, on stage s. Of n decodes that are alike a round
    takes max(n x max_s(t_s), sum_s(t_s)). The slowest stage computes one after another, and a
    decode begins anew when the last stage has given it its tokens. Nothing else waits.

    In general it takes max(sum_d(max_s(t_ds)), sum_s(max_d(t_ds))). A computation waits for the
    decode before it on its stage, and for its own stage before. Both kinds of steps make closed
    paths. One that passes all decodes p times and all stages q times takes p + q rounds. Its steps
    take at most p of the first sum and q of the second. So no path lasts longer a round than the
    longer sum. It is exact where one stage is every decode's slowest, and one decode every stage's.
    """
    by_decode = sum(max(stages) for stages in decodes)
    by_stage: float = sum(max(each) for each in zip(*decodes, strict=True))
    return max(by_decode, by_stage)


def clock_of(sharding: Sharding, hardware: Hardware) -> Clock | None:
    """The clock of a sharding that moves something; None where the hardware lacks a number.

    Raises:
        PlanError: ranks that pull from each other lie on several nodes.
    """
    linears = moved_linears(sharding, hardware)
    if lacking_for(sharding, hardware, linears):
        return None
    return Clock(sharding, hardware, linears)


def lacking_for(
    sharding: Sharding, hardware: Hardware, linears: tuple[Moved, ...]
) -> tuple[str, ...]:
    """The numbers that either way needs and the hardware lacks.

    Raises:
        PlanError: ranks that pull from each other lie on several nodes.
    """
    of_weights = Transfer(sharding, hardware).lacking()
    of_parts = split_spread(sharding, hardware)
    spreads = sorted({*(one.spread for one in linears), *([of_parts] if of_parts else [])})
    of_activations = [lack for spread in spreads for lack in lacking(spread, hardware)]
    return tuple(dict.fromkeys((*of_weights, *of_activations)))


def _mean(counts: Sequence[int], each: Sequence[Sequence[float]]) -> list[float]:
    """Value by value, where each stands for so many layers."""
    return [
        sum(count * value for count, value in zip(counts, values, strict=True)) / sum(counts)
        for values in zip(*each, strict=True)
    ]


def _of_rows(whole: Operation, one: Moved, tokens: int) -> Operation:
    """The part of a product that the rank of most rows has: it reads these and all tokens."""
    share = one.largest_part
    return whole._replace(
        flops=whole.flops * share,
        moved_bytes=one.linear.tensors[0].nbytes * share
        + 2.0 * tokens * (one.shape.rows * share + one.shape.inner),
    )
