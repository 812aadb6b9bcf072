"""Forecast: what a sharding costs in time, phase by phase, before anything is launched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vllm_layershard.estimate.broadcast import broadcast_basis, broadcast_seconds
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.overlap import (
    Forward,
    Movement,
    TimedLayer,
    TimedStep,
    movements,
    simulate,
    trace,
)
from vllm_layershard.estimate.roofline import (
    COMPUTE_EFFICIENCY,
    MEMORY_EFFICIENCY,
    step_seconds,
)
from vllm_layershard.models import Batch, Sharding
from vllm_layershard.plan import build_plan, stage_layers
from vllm_layershard.plan.linear import suffix_of

PREFILL_TOKENS: Final = 8192
DECODE_SEQUENCES: Final = 64
DECODE_CONTEXT: Final = 4096
"""The phases that are looked at where the user says nothing; assumed."""

TOLERANCE: Final = 0.01
"""A movement is called hidden when a forward waits for less than this share of its compute."""

MAX_TOKENS: Final = 1 << 20
"""The break-even is looked for up to here."""

_STEPS: Final = (0, 1, 2, 3, 4, 6, 8)
"""The prefetch steps that are compared."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One kind of forward, with its timeline, of the pipeline stage that waits longest."""

    name: str
    batch: Batch
    forward: Forward

    @property
    def slowdown(self) -> float:
        """Waiting as a share of the compute."""
        return self.forward.exposed / self.forward.compute

    @property
    def hidden(self) -> bool:
        """Whether the waiting is within TOLERANCE."""
        return self.slowdown <= TOLERANCE


@dataclass(frozen=True, slots=True)
class Forecast:
    """The phases, and what follows from them.

    `recommended_step` is the smallest within TOLERANCE of the best in the prefill;
    `break_even_tokens` the fewest prefill tokens a rank that hide the movement, None if none do.
    """

    hardware: Hardware
    phases: tuple[Phase, ...]
    recommended_step: int
    break_even_tokens: int | None
    verdict: str
    assumptions: tuple[str, ...]


def prefill(tokens: int) -> Batch:
    """One prompt of this many tokens on each rank: a token attends to half of it on average."""
    return Batch(tokens=tokens, context=tokens / 2, decode=False)


def forecast(sharding: Sharding, hardware: Hardware, tokens: int = PREFILL_TOKENS) -> Forecast:
    """Simulate a prefill of `tokens` on each rank and a decode, on this hardware."""
    forwards = _Forwards(sharding, hardware)
    step = sharding.config.prefetch_step
    decode = Batch(tokens=DECODE_SEQUENCES, context=DECODE_CONTEXT, decode=True)
    phases = (
        forwards.phase("prefill", prefill(tokens), step),
        forwards.phase("decode", decode, step),
    )
    recommended = forwards.best_step(prefill(tokens))
    break_even = forwards.break_even(step)
    ranks = max(group.plan.group_size for group in sharding.groups)
    return Forecast(
        hardware=hardware,
        phases=phases,
        recommended_step=recommended,
        break_even_tokens=break_even,
        verdict=_verdict(phases, recommended, step, break_even),
        assumptions=(
            f"a step of a layer reaches {COMPUTE_EFFICIENCY} of the compute rate or "
            f"{MEMORY_EFFICIENCY} of the memory bandwidth of {hardware.name}",
            broadcast_basis(ranks, hardware)[1],
            "the all-to-all and all-reduce of the model itself are not counted, neither as time "
            "nor as load on the link",
            f"prefill: one prompt of {tokens:,} tokens a rank; decode: {DECODE_SEQUENCES} "
            f"sequences a rank after {DECODE_CONTEXT:,} tokens each; experts evenly loaded",
        ),
    )


class _Forwards:
    """Runs forwards of one sharding on one device with different batches and prefetch steps."""

    def __init__(self, sharding: Sharding, hardware: Hardware) -> None:
        self._sharding = sharding
        self._hardware = hardware
        self._stages = stage_layers(sharding.model.num_layers, sharding.deployment.layout.pp)
        self._like = _representatives(sharding)
        self._moves: dict[tuple[int, int], tuple[Movement, ...]] = {}

    def phase(self, name: str, batch: Batch, prefetch_step: int) -> Phase:
        """The forward of the pipeline stage that waits longest, with its timeline."""
        stages = self._timed(batch, prefetch_step)
        forwards = [simulate(layers, moves) for layers, moves in stages]
        worst = max(range(len(stages)), key=lambda i: (forwards[i].exposed, forwards[i].compute))
        return Phase(name, batch, trace(*stages[worst]))

    def run(self, batch: Batch, prefetch_step: int) -> Forward:
        """The same without the timeline."""
        forwards = (simulate(*stage) for stage in self._timed(batch, prefetch_step))
        return max(forwards, key=lambda forward: (forward.exposed, forward.compute))

    def _timed(
        self, batch: Batch, prefetch_step: int
    ) -> list[tuple[list[TimedLayer], tuple[Movement, ...]]]:
        """What `simulate` wants, for each pipeline stage."""
        timed = {
            like: tuple(
                TimedStep(suffix_of(step.linear), step_seconds(step, self._hardware))
                for step in self._sharding.model.steps(like, self._sharding.deployment, batch)
            )
            for like in set(self._like.values())
        }
        return [
            (
                [TimedLayer(layer_id, timed[self._like[layer_id]]) for layer_id in layers],
                self._stage_moves(stage, prefetch_step),
            )
            for stage, layers in enumerate(self._stages)
        ]

    def best_step(self, batch: Batch) -> int:
        """The smallest prefetch step within TOLERANCE of the fastest."""
        most = min(
            len(series.series) for group in self._sharding.groups for series in group.plan.series
        )
        totals = {step: self.run(batch, step).total for step in _STEPS if step < most}
        best = min(totals.values())
        return next(step for step, total in totals.items() if total <= best * (1 + TOLERANCE))

    def break_even(self, prefetch_step: int) -> int | None:
        """The fewest prefill tokens a rank from which on the movement hides, by bisection."""

        def hides(tokens: int) -> bool:
            forward = self.run(prefill(tokens), prefetch_step)
            return forward.exposed <= forward.compute * TOLERANCE

        if not hides(MAX_TOKENS):
            return None
        too_few, enough = 0, MAX_TOKENS
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if hides(middle):
                enough = middle
            else:
                too_few = middle
        return enough

    def _stage_moves(self, stage: int, prefetch_step: int) -> tuple[Movement, ...]:
        key = (stage, prefetch_step)
        if key not in self._moves:
            self._moves[key] = tuple(
                move
                for group in self._sharding.groups
                if group.pp_stage == stage
                for move in movements(
                    build_plan(
                        [series.series for series in group.plan.series],
                        group.plan.group_size,
                        prefetch_step,
                        group.plan.placement,
                        group.plan.layer_stride,
                    ),
                    group.prefixes,
                    lambda nbytes, ranks=group.plan.group_size: broadcast_seconds(  # type: ignore[misc]
                        nbytes, ranks, self._hardware
                    ),
                )
            )
        return self._moves[key]


def _representatives(sharding: Sharding) -> Mapping[int, int]:
    """For each layer the first one whose linears are alike: its steps take as long."""
    kinds: dict[int, list[object]] = {}
    for linear in sharding.model.linears(sharding.deployment):
        kinds.setdefault(linear.layer_id, []).append((suffix_of(linear.prefix), linear.tensors))
    first: dict[tuple[object, ...], int] = {}
    return {layer_id: first.setdefault(tuple(kind), layer_id) for layer_id, kind in kinds.items()}


def _verdict(phases: tuple[Phase, ...], recommended: int, step: int, break_even: int | None) -> str:
    first, second = phases
    if not first.forward.fetch:
        return "nothing moves: the placement is replicated"
    if first.hidden:
        said = f"hidden in prefill from {break_even:,} tokens a rank"
    elif first.forward.link_bound:
        said = (
            f"not hidden in a prefill of {first.batch.tokens:,} tokens a rank, which slows by "
            f"{first.slowdown:.0%}: the link is the bound and no prefetch_step helps"
        )
        said += (
            f"; it hides from {break_even:,} tokens a rank"
            if break_even is not None
            else "; no number of tokens hides it"
        )
    else:
        said = (
            f"a prefill of {first.batch.tokens:,} tokens a rank slows by {first.slowdown:.1%} "
            f"with prefetch_step {step}"
        )
        said += f"; {recommended} does better" if recommended != step else "; no step does better"
    if second.hidden:
        return f"{said}; hidden in decode at batch {second.batch.tokens}"
    why = " (the link is the bound, no prefetch_step helps)" if second.forward.link_bound else ""
    return (
        f"{said}; decode at batch {second.batch.tokens} would slow by {second.slowdown:.0%}{why}: "
        "do not enable it there"
    )
