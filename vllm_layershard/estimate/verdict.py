"""Verdict: the forecast in plain words."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.estimate.outcome import Phase
from vllm_layershard.estimate.overlap import TOLERANCE, Forward
from vllm_layershard.estimate.wording import percent, tokens

_BETTER = 0.999
"""A step is better than another from a thousandth of a forward on: less is no reason to change."""


class _Reason(NamedTuple):
    """Why a forward does not hide, and the forward that would be better, where there is one."""

    words: str
    better: Forward | None = None


def verdict_on(
    phases: tuple[Phase, ...], step: int, break_even: int | None, *, pulls: bool = False
) -> str:
    """Prefill, then decode. Both forwards are known."""
    prefill, decode = (phase.forward for phase in phases)
    assert prefill is not None, "an estimate without numbers has no verdict of its own"
    assert decode is not None, "an estimate without numbers has no verdict of its own"
    if not prefill.fetch:
        return "nothing moves: the placement is replicated"
    if phases[0].hidden:
        said = "hidden in prefill"
        if break_even is not None:
            said += f" from {tokens(break_even)} a rank"
    else:
        why = _why(phases[0], prefill, step, pulls)
        said = (
            f"a prefill of {tokens(phases[0].batch.tokens)} a rank slows by "
            f"{percent(prefill.slowdown)}: {why.words}; "
            + ("as it is, " if why.better is not None else "")
            + (
                f"it hides from {tokens(break_even)} a rank"
                if break_even is not None
                else "no number of tokens hides it"
            )
        )
    if phases[1].hidden:
        return f"{said}; hidden in decode at batch {phases[1].batch.tokens:,}"
    why = _why(phases[1], decode, step, pulls)
    return (
        f"{said}; decode at batch {phases[1].batch.tokens:,} would slow by "
        f"{percent(decode.slowdown)} ({why.words}): do not enable it there"
        + (" as it is" if why.better is not None and why.better.hidden else "")
    )


def _why(phase: Phase, forward: Forward, step: int, pulls: bool) -> _Reason:
    recommended, better, kept = phase.recommended_step, phase.recommended, phase.kept
    assert recommended is not None, "its forward is known"
    assert better is not None, "its forward is known"
    if (recommended > step or better.total < _BETTER * forward.total) and (
        kept is None or better.hidden or better.total <= (1 + TOLERANCE) * kept.total
    ):
        return _Reason(f"prefetch_step {recommended} does better than {step}", better)
    if kept is not None:
        return _Reason(f"with keep_first it would be {percent(kept.slowdown)}", kept)
    if forward.link_bound:
        return _Reason("the link is the bound, no prefetch_step helps")
    if forward.stalled < forward.exposed / 2:
        shared = "pulls and compute share the memory"
        if not pulls:
            shared = "broadcasts and compute share the memory and the cores"
        return _Reason(f"{shared}, no prefetch_step helps")
    return _Reason(f"prefetch_step {step} waits, and no other does better by 1 %")
