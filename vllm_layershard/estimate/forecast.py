"""What a sharding costs in time, phase by phase, before anything is launched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from vllm_layershard.errors import PlanError
from vllm_layershard.estimate.capacity import fit_of
from vllm_layershard.estimate.forwards.batches import (
    DECODE_CONTEXT,
    DECODE_SEQUENCES,
    PREFILL_TOKENS,
    Prompts,
    decode,
    prefill,
)
from vllm_layershard.estimate.forwards.forwards import Forwards
from vllm_layershard.estimate.forwards.overlap import TOLERANCE
from vllm_layershard.estimate.forwards.thresholds import MAX_TOKENS, Thresholds, fewest_tokens
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.outcome import Abstention, Estimate, Forecast, Phase, PhaseName, Trial
from vllm_layershard.estimate.taken import beside_taken
from vllm_layershard.estimate.transfer import Transfer
from vllm_layershard.estimate.verdict import abstaining, rule_said, verdict_on, warned
from vllm_layershard.estimate.wording import tokens
from vllm_layershard.models import Batch, Sharding, shard_model

WORTH: Final = 0.75
"""`keep_first` is suggested only where it leaves more than this share of the saving, and at most
this share of the exposed time."""


def forecast(
    sharding: Sharding,
    hardware: Hardware,
    tokens: int = PREFILL_TOKENS,
    sequences: int = DECODE_SEQUENCES,
    context: int = DECODE_CONTEXT,
    *,
    prompt: int | None = None,
    cached: int = 0,
    traced: bool = True,
) -> Forecast:
    """Simulate a prefill of `tokens` on each rank, and a decode of `sequences` on each rank.

    `prompt` and `cached` say what the prefill's prompts are (see `Prompts`). `traced`: with their
    timelines.

    Raises:
        PlanError: ranks that pull from each other lie on several nodes.
    """
    prompts = Prompts(prompt, cached)
    prefill_of = partial(prefill, pcp=sharding.deployment.layout.pcp, prompts=prompts)
    batches: dict[PhaseName, Batch] = {
        "prefill": prefill_of(tokens),
        "decode": decode(sequences, context, sharding.model.drafted),
    }
    transfer = Transfer(sharding, hardware)
    fit = fit_of(sharding, hardware)
    lacking = transfer.lacking()
    if lacking:
        verdict = warned(sharding, hardware, fit, abstaining(hardware, lacking))
        return Abstention(hardware, fit, verdict, batches, lacking, prompts)
    forwards = Forwards(sharding, hardware)
    step, keep_first = sharding.config.prefetch_step, sharding.config.keep_first
    run = forwards.trace if traced else forwards.run
    least, most = contention = transfer.contention
    ranges = transfer.moves and least < most
    phases = tuple(
        Phase(
            name=name,
            batch=batch,
            asked=Trial(step, keep_first, run(batch, step)),
            best=_best(forwards, batch, keep_first),
            kept=None,
            least=forwards.run(batch, step, least=True) if ranges else None,
        )
        for name, batch in batches.items()
    )
    if not keep_first and any(map(_waits, phases)):
        phases = _with_kept(phases, sharding, hardware)
    thresholds = _thresholds(forwards, step, prefill_of, phases[0])
    replicated = sharding.config.placement == "replicated"
    rule, moved = _moved(sharding, hardware, batches)
    verdict = verdict_on(
        phases,
        thresholds,
        contention,
        pulls=transfer.pulls,
        replicated=replicated,
        rule=rule,
        moved=moved,
    )
    return Estimate(
        hardware=hardware,
        fit=fit,
        verdict=warned(sharding, hardware, fit, verdict),
        phases=phases,
        thresholds=thresholds,
        contention=contention,
        assumptions=_assumptions(sharding, hardware, transfer, batches, prompts),
        prompts=prompts,
        movement_basis=transfer.basis(),
    )


def _moved(
    sharding: Sharding, hardware: Hardware, batches: dict[PhaseName, Batch]
) -> tuple[str, dict[PhaseName, float | None]]:
    """What the verdict says of activations that may move."""
    if sharding.config.move == "weights":
        return "", {}
    from vllm_layershard.estimate.activations.shares import shares_of  # seldom asked for

    said = rule_said(sharding.config.move_weights_from)
    return said, shares_of(sharding, hardware, batches)


def _best(forwards: Forwards, batch: Batch, keep_first: bool) -> Trial:
    step = forwards.recommended_step(batch)
    return Trial(step, keep_first, forwards.run(batch, step))


def _waits(phase: Phase) -> bool:
    """True if stalls exceed a quarter of what is exposed: they alone are spared by `keep_first`."""
    forward = phase.asked.forward
    return not forward.hidden and forward.stalled > (1 - WORTH) * forward.exposed


def _with_kept(
    phases: tuple[Phase, ...], sharding: Sharding, hardware: Hardware
) -> tuple[Phase, ...]:
    """The phases, those that wait with what `keep_first` makes of them."""
    config = replace(sharding.config, keep_first=True)
    try:
        kept = shard_model(sharding.model, sharding.deployment, config)
    except PlanError:  # it leaves a series too few layers for the step
        return phases
    left, now = (min(beside_taken(one, hardware).saved_bytes) for one in (kept, sharding))
    if left <= max(0.0, WORTH * now):
        return phases
    forwards = Forwards(kept, hardware)
    return tuple(
        phase._replace(kept=_worth(phase, forwards)) if _waits(phase) else phase for phase in phases
    )


def _worth(phase: Phase, forwards: Forwards) -> Trial | None:
    """The trial with `keep_first`, where it exposes so much less than the one asked for."""
    step = phase.asked.step
    forward = forwards.run(phase.batch, step)
    if forward.exposed > WORTH * phase.asked.forward.exposed:
        return None
    return Trial(step, True, forward)


def _said_of(prompts: Prompts, tokens_: int, pcp: int) -> str:
    """What the prefill computes, for a person."""
    ranks = "a rank" if pcp == 1 else f"on each of its {pcp} context-parallel ranks"
    cached = f", each after {tokens(prompts.cached)} in the cache" if prompts.cached else ""
    if prompts.length is None:
        return f"one prompt of {tokens(tokens_)} {ranks}{cached}"
    if prompts.length > tokens_ * pcp:
        return f"{tokens(tokens_)} {ranks} of a prompt of {prompts.length:,}{cached}"
    return f"{tokens(tokens_)} {ranks} in prompts of {prompts.length:,}{cached}"


def _verified(decoded: Batch) -> str:
    """What a decode computes of a sequence that drafts."""
    return f", 1 + {decoded.drafted} tokens of each" if decoded.drafted else ""


def lacking_for(sharding: Sharding, hardware: Hardware) -> tuple[str, ...]:
    """The numbers that a forecast needs and the hardware lacks.

    Raises:
        PlanError: ranks that pull from each other lie on several nodes.
    """
    return Transfer(sharding, hardware).lacking()


def hidden_from(
    forwards: Forwards,
    step: int,
    prefill_of: Callable[[int], Batch],
    tokens: int,
    *,
    least: bool = False,
    guess: float | None = None,
    enough: int | None = None,
) -> int | None:
    """The fewest tokens of a prefill that hides, searched from one of `tokens`; None if none does.

    `least`: with the least contention, else with the most. `guess`, `enough`: as `fewest_tokens`
    has them.
    """

    def hides(tokens: int) -> float:
        slowdown = forwards.run(prefill_of(tokens), step, least=least).slowdown
        return min(TOLERANCE / slowdown, MAX_TOKENS) - 1 if slowdown else MAX_TOKENS

    if guess is None:  # what is added hardly depends on the tokens, the compute grows with them
        guess = tokens * forwards.run(prefill_of(tokens), step, least=least).slowdown / TOLERANCE
    return fewest_tokens(hides, tokens, guess, enough)


def _thresholds(
    forwards: Forwards, step: int, prefill_of: Callable[[int], Batch], phase: Phase
) -> Thresholds:
    """Search for each, from the prefill that was asked for and has been run."""

    def waits(tokens: int) -> float:
        return -forwards.run(prefill_of(tokens), step, least=True).stalled

    asked, tokens = phase.asked.forward, phase.batch.tokens
    if not asked.fetch:
        return Thresholds(never_waits=1, hidden_least=1, hidden_most=1)
    least = most = hidden_from(forwards, step, prefill_of, tokens)
    if phase.least is not None:
        guess = (most or tokens) * phase.least.exposed / (asked.exposed or 1.0)
        least = hidden_from(
            forwards, step, prefill_of, tokens, least=True, guess=guess, enough=most
        )
    return Thresholds(fewest_tokens(waits, tokens, 2 * tokens), least, most)


def _assumptions(
    sharding: Sharding,
    hardware: Hardware,
    transfer: Transfer,
    batches: dict[PhaseName, Batch],
    prompts: Prompts,
) -> tuple[str, ...]:
    layout, decoded = sharding.deployment.layout, batches["decode"]
    prefilled = _said_of(prompts, batches["prefill"].tokens, layout.pcp)
    of_stage = " in each stage's forward" if layout.pp > 1 else ""
    started = "the copies of a pull" if transfer.pulls else "a broadcast"
    return (
        f"a step of a layer reaches {hardware.compute_efficiency.value:g} of the compute rate or "
        f"{hardware.memory_efficiency.value:g} of the memory bandwidth of {hardware.name}",
        *transfer.assumptions(),
        "the all-to-all and all-reduce of the model itself are not counted, neither as time "
        f"nor as load on the link; nor is the CPU's time to start {started}, which a server "
        "without graphs pays in decode",
        f"prefill: {prefilled}; decode: {decoded.sequences:,.0f} sequences a rank{of_stage} "
        f"after {decoded.context:,.0f} tokens each{_verified(decoded)}; experts evenly loaded",
    )
