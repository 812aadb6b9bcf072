"""What pays: the phases that must not slow down, what `--check` asks, and stripes as an offer.

`placement` stays as it is asked for. Stripes are offered where they do better, and never where the
checks of the planner or of a server would refuse them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple, get_args

from vllm_layershard.errors import ConfigError, PlanError
from vllm_layershard.estimate import Abstention, Estimate, Forecast, Phase, PhaseName
from vllm_layershard.estimate.capacity import fit_of, may_fit
from vllm_layershard.estimate.forecast import hidden_from, lacking_for
from vllm_layershard.estimate.forwards.batches import prefill
from vllm_layershard.estimate.forwards.forwards import Forwards
from vllm_layershard.estimate.forwards.overlap import TOLERANCE, Forward
from vllm_layershard.estimate.taken import beside_taken
from vllm_layershard.estimate.verdict import offering
from vllm_layershard.models import Sharding, shard_model
from vllm_layershard.planner.options import names_of

PREFILL: Final[tuple[PhaseName, ...]] = ("prefill",)
"""What has to hide where nobody says."""


def phases_of(hide_in: str | Sequence[str]) -> tuple[PhaseName, ...]:
    """The phases of these names, one a string or several with commas between them; prefill first.

    Raises:
        ConfigError: another name.
    """
    known: tuple[PhaseName, ...] = get_args(PhaseName)
    names = names_of(hide_in)
    for name in names:
        if name not in known:
            raise ConfigError(f"--hide-in: {name!r} is not one of {', '.join(known)}")
    return tuple(phase for phase in known if phase in names)


def failures_of(
    sharding: Sharding, forecast: Forecast, phases: Sequence[PhaseName]
) -> tuple[str, ...]:
    """Why a plan does not pay; empty where it does.

    It pays where the weights fit, every rank saves something, and each of the phases hides. A
    phase must not lose by an exchange of tokens either.
    """
    failures = []
    if not may_fit(forecast.fit):
        failures.append("it does not fit")
    least = min(beside_taken(sharding, forecast.hardware).saved_bytes)
    if least <= 0:
        failures.append(f"a rank saves {least:,} bytes")
    match forecast:
        case Estimate():
            shown = [(phase.name, "does not hide") for phase in forecast.phases if not phase.hidden]
            if sharding.config.move != "weights" and sharding.moves:
                shown = _shown_by_move(sharding, forecast)
            failures += [f"{name} {said}" for name, said in shown if name in phases]
        case Abstention():
            failures += [f"{name} is not estimated" for name in forecast.batches if name in phases]
    if sharding.deployment.exchange:
        from vllm_layershard.estimate.exchange.judge import judge  # seldom asked for

        times = judge(sharding, forecast.hardware, forecast.batches).phases
        losing = [name for name in phases if name in times and not times[name].wins]
        failures += [f"{name} loses by the exchange" for name in losing]
        if not times and isinstance(forecast, Estimate):
            failures.append("the exchange is not estimated")
    return tuple(failures)


def _shown_by_move(sharding: Sharding, forecast: Estimate) -> list[tuple[PhaseName, str]]:
    """The phases that get longer, each as it moves, or of which that is not known."""
    from vllm_layershard.estimate.activations.shares import shares_of  # seldom asked for

    shares, shown = shares_of(sharding, forecast.hardware, forecast.batches), []
    for phase in forecast.phases:
        share = shares.get(phase.name, 0.0 if phase.hidden else 1.0)
        if share is None:
            shown.append((phase.name, "is not estimated"))
        elif share > TOLERANCE:
            shown.append((phase.name, "does not hide"))
    return shown


class Offer(NamedTuple):
    """The same plan with stripes, the forward of each phase, and from how many tokens a prefill
    hides.
    """

    planned: Sharding
    forwards: Mapping[PhaseName, Forward]
    hidden_from: int | None


def offer_of(sharding: Sharding, expected: Forecast) -> tuple[Forecast, Offer | None]:
    """The forecast with the offer in its verdict, and the offer; None where there is none."""
    if not isinstance(expected, Estimate) or not _may_be_striped(sharding, expected):
        return expected, None
    striped = _striped(sharding, expected)
    if striped is None or not _does_better(striped, expected, sharding):
        return expected, None
    said = offering(striped.forwards, expected.phases, striped.hidden_from)
    return expected._replace(verdict=f"{expected.verdict}; {said}"), striped


def _may_be_striped(sharding: Sharding, expected: Estimate) -> bool:
    """Whether a server would take stripes: whole layers move now, and all ranks are on one node.

    A broadcast that is asked for cannot move stripes. Where activations may move, stripes are cut
    at rows, have a threshold of their own, and some methods refuse them: they are not offered.
    """
    config, layout = sharding.config, sharding.deployment.layout
    return (
        sharding.moves
        and config.placement == "round_robin"
        and config.transport != "broadcast"
        and config.move == "weights"
        and layout.world_size <= expected.hardware.devices_a_node
        and may_fit(expected.fit)
    )


def _striped(sharding: Sharding, expected: Estimate) -> Offer | None:
    """The plan with stripes, which are pulled: a pull has one contention, not a range."""
    config, device = replace(sharding.config, placement="striped"), expected.hardware
    try:
        planned = shard_model(sharding.model, sharding.deployment, config)
        lacking = lacking_for(planned, device)
    except PlanError:
        return None
    if lacking or planned.loses or not may_fit(fit_of(planned, device)):
        return None
    forwards, step, prompts = Forwards(planned, device), config.prefetch_step, expected.prompts
    run = {phase.name: forwards.run(phase.batch, step) for phase in expected.phases}
    prefill_of = partial(prefill, pcp=planned.deployment.layout.pcp, prompts=prompts)
    tokens = expected.batches["prefill"].tokens
    return Offer(planned, run, hidden_from(forwards, step, prefill_of, tokens))


def _does_better(striped: Offer, whole: Estimate, sharding: Sharding) -> bool:
    """Whether stripes hide at fewer tokens, or cost less where whole layers do not hide.

    They have to do so whatever the contention is beside a broadcast.
    """
    fewest, least = striped.hidden_from, whole.thresholds.hidden_least
    if fewest is not None and (least is None or fewest < least):
        return True
    return any(
        costs_less(_stages(striped, whole, phase, sharding))
        for phase in whole.phases
        if not phase.hidden
    )


def costs_less(stages: Sequence[tuple[Forward, Forward, Forward]]) -> bool:
    """Whether stripes gain in some pipeline stage, and lose in none.

    Each stage has three forwards: with stripes, and with whole layers and the least contention of
    the device's, and the most. It gains more than 1 % of its compute, or so that it hides. It loses
    from a picosecond on, where it does not hide.
    """
    gains = loses = False
    for striped, least, most in stages:
        spared = least.exposed - striped.exposed
        loses |= round(spared, 12) < 0 and not striped.hidden
        gains |= not most.hidden and (striped.hidden or spared > TOLERANCE * most.compute)
    return gains and not loses


def _stages(
    striped: Offer, whole: Estimate, phase: Phase, sharding: Sharding
) -> list[tuple[Forward, Forward, Forward]]:
    """What `costs_less` compares: the stages that lose most may be two."""
    if sharding.deployment.layout.pp == 1:
        return [(striped.forwards[phase.name], phase.with_least, phase.asked.forward)]
    step = sharding.config.prefetch_step
    of_whole = Forwards(sharding, whole.hardware)
    of_stripes = Forwards(striped.planned, whole.hardware)
    sides = (
        of_stripes.by_stage(phase.batch, step),
        of_whole.by_stage(phase.batch, step, least=True),
        of_whole.by_stage(phase.batch, step),
    )
    return [*zip(*sides, strict=True)]
