"""The phases that must not slow down, and what `--check` asks of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, get_args

from vllm_layershard.errors import ConfigError
from vllm_layershard.estimate import Abstention, Estimate, Forecast, PhaseName
from vllm_layershard.estimate.capacity import may_fit
from vllm_layershard.estimate.overlap import TOLERANCE
from vllm_layershard.models import Sharding
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
    if min(sharding.saved_bytes) <= 0:
        failures.append(f"a rank saves {min(sharding.saved_bytes):,} bytes")
    match forecast:
        case Estimate():
            shown = [phase.name for phase in forecast.phases if not phase.hidden]
            if sharding.config.move != "weights" and sharding.moves:
                shown = _shown_by_move(sharding, forecast, shown)
            failures += [f"{name} does not hide" for name in shown if name in phases]
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


def _shown_by_move(
    sharding: Sharding, forecast: Estimate, by_weights: Sequence[PhaseName]
) -> list[PhaseName]:
    """The phases that get longer, each as it moves: `by_weights` do where weights move."""
    from vllm_layershard.estimate.activations.clock import Clock  # seldom asked for
    from vllm_layershard.estimate.activations.linears import moved_linears

    linears = moved_linears(sharding, forecast.hardware)
    clock, shown = Clock(sharding, forecast.hardware, linears), []
    for phase in forecast.phases:
        rule = sharding.config.move_weights_from
        if rule is not None and phase.batch.tokens >= rule:
            longer = phase.name in by_weights
        else:
            both = clock.both(phase.batch)
            longer = both.activations > TOLERANCE * both.compute
        if longer:
            shown.append(phase.name)
    return shown
