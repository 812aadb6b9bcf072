"""Prefetch: whether the movement hides, in the two phases that are looked at."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.estimate import Abstention, Estimate, Forecast, Phase, PhaseName
from vllm_layershard.models import Batch
from vllm_layershard.planner.results.document import microseconds


class PhaseTimes(NamedTuple):
    """Times of one forward in microseconds; None, and `hidden` too, where nothing is estimated.

    It has so many `tokens` on each rank; with drafts a decode has 1 + drafts of each sequence.
    `compute_us` is the forward without sharding, `fetch_us` the movements alone, `exposed_us` by
    how much the forward gets longer, of which `stalled_us` is waiting. The time with `keep_first`
    is None where that is not worth it. All have the most contention of the device's; with the least
    and the most the forward gets longer by `exposed_range_us`.
    """

    phase: PhaseName
    tokens: int
    context: float
    compute_us: float | None = None
    fetch_us: float | None = None
    exposed_us: float | None = None
    stalled_us: float | None = None
    link_bound: bool | None = None
    hidden: bool | None = None
    recommended_step: int | None = None
    keep_first_exposed_us: float | None = None
    exposed_range_us: tuple[float, float] | None = None


class Prefetch(NamedTuple):
    """The verdict and the phases. `lacking` names the numbers that the device lacks for times.

    `recommended_step` is the prefill's: estimate/forwards/forwards.py chooses it for each phase.
    `break_even_tokens` are the fewest prefill tokens a rank that hide the movement; None if no
    number does, or nothing is estimated. `break_even_range` is that with the least `contention` of
    the device's and with the most. From `never_waits_tokens` on no linear waits for its weight.
    The prefill's prompts have `prompt_tokens` each (None: it is one prompt) after `cached_tokens`.
    """

    recommended_step: int | None
    verdict: str
    phases: tuple[PhaseTimes, ...]
    break_even_tokens: int | None
    hardware: str
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]
    lacking: tuple[str, ...]
    contention: tuple[float, float] | None = None
    break_even_range: tuple[int | None, int | None] = (None, None)
    never_waits_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int = 0


def prefetch_of(forecast: Forecast) -> Prefetch:
    """What is estimated; None, or empty, where a number is lacking."""
    match forecast:
        case Estimate():
            return Prefetch(
                recommended_step=forecast.recommended_step,
                verdict=forecast.verdict,
                phases=tuple(map(_times, forecast.phases)),
                break_even_tokens=forecast.break_even_tokens,
                hardware=forecast.hardware.name,
                assumptions=forecast.assumptions,
                sources=forecast.hardware.sources,
                lacking=(),
                contention=forecast.contention,
                break_even_range=forecast.thresholds[1:],
                never_waits_tokens=forecast.thresholds.never_waits,
                prompt_tokens=forecast.prompts.length,
                cached_tokens=forecast.prompts.cached,
            )
        case Abstention():
            return Prefetch(
                recommended_step=None,
                verdict=forecast.verdict,
                phases=tuple(_unknown(name, batch) for name, batch in forecast.batches.items()),
                break_even_tokens=None,
                hardware=forecast.hardware.name,
                assumptions=(),
                sources=forecast.hardware.sources,
                lacking=forecast.lacking,
                prompt_tokens=forecast.prompts.length,
                cached_tokens=forecast.prompts.cached,
            )


def _times(phase: Phase) -> PhaseTimes:
    forward, kept = phase.asked.forward, phase.kept
    return _unknown(phase.name, phase.batch)._replace(
        compute_us=microseconds(forward.compute),
        fetch_us=microseconds(forward.fetch),
        exposed_us=microseconds(forward.exposed),
        stalled_us=microseconds(forward.stalled),
        link_bound=forward.link_bound,
        hidden=phase.hidden,
        recommended_step=phase.best.step,
        keep_first_exposed_us=None if kept is None else microseconds(kept.forward.exposed),
        exposed_range_us=(
            microseconds(phase.with_least.exposed),
            microseconds(forward.exposed),
        ),
    )


def _unknown(name: PhaseName, batch: Batch) -> PhaseTimes:
    """A phase of which nothing is estimated."""
    return PhaseTimes(name, batch.tokens, batch.context)
