"""The one sentence that says whether a plan pays, and in which phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from vllm_layershard.estimate.capacity import Fit, exceeding
from vllm_layershard.estimate.figure import LABELS
from vllm_layershard.estimate.forwards.overlap import TOLERANCE, Forward
from vllm_layershard.estimate.forwards.thresholds import Thresholds
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.outcome import Phase, PhaseName, Trial
from vllm_layershard.estimate.taken import beside_taken, taken_by
from vllm_layershard.estimate.wording import changes, percent, tokens
from vllm_layershard.models import Sharding

_BETTER: Final = 0.999
"""Another step is recommended only where it makes the forward at least 0.1 % shorter."""

_NONE_MOVED: Final[Mapping[PhaseName, float | None]] = {}

_ALL_WHOLE: Final = "every layer stays whole on every rank"


class _Remedy(NamedTuple):
    """A trial that does better than the one asked for, and how the verdict names it."""

    words: str
    forward: Forward


def verdict_on(
    phases: tuple[Phase, ...],
    thresholds: Thresholds,
    contention: tuple[float, float],
    *,
    pulls: bool,
    replicated: bool,
    rule: str = "",
    moved: Mapping[PhaseName, float | None] = _NONE_MOVED,
) -> str:
    """Prefill, then decode. `replicated` is the placement that was asked for.

    `rule` says which forwards move weights, where others do not. `moved` has the phases that move
    activations, and by which share of its compute each gets longer; None: that is not known.
    """
    prefill, decode = phases
    if not prefill.asked.forward.fetch:
        why = "the placement is replicated" if replicated else _ALL_WHOLE
        return f"nothing moves: {why}"
    at_prefill = f"a prefill of {tokens(prefill.batch.tokens)} a rank"
    at_decode = f"decode at batch {decode.batch.sequences:,.0f}"
    said = [
        _moved(at_prefill, moved["prefill"])
        if "prefill" in moved
        else _prefill(at_prefill, prefill, _turns(thresholds, contention), pulls),
        _moved(at_decode, moved["decode"])
        if "decode" in moved
        else _decode(at_decode, decode, pulls),
    ]
    return rule + "; ".join(said)


def rule_said(weights_from: int | None) -> str:
    """Which forwards move weights: those of so many tokens a rank; None: none."""
    if weights_from is None:
        return "activations move in every forward: "
    return f"weights move from {tokens(weights_from)} a rank on, activations below: "


def _moved(at: str, share: float | None) -> str:
    """A phase that moves activations."""
    if share is None:
        return f"{at} is not estimated where activations move"
    if 0 <= share <= TOLERANCE:
        return f"{at} hides where activations move"
    return f"{at} {changes(share)} where activations move"


def _prefill(at: str, phase: Phase, turns: str, pulls: bool) -> str:
    if phase.hidden:
        return f"hidden in prefill{turns}"
    remedy = _preferred(_remedies(phase))
    return (
        f"{at} slows by {_slowdown(phase)}: {_why(phase, remedy, pulls)}; "
        + ("as it is, " if remedy is not None else "")
        + (f"it hides{turns}" if turns else "no number of tokens hides it")
    )


def _decode(at: str, phase: Phase, pulls: bool) -> str:
    if phase.hidden:
        return f"hidden in {at}"
    remedy = _preferred(_remedies(phase))
    return (
        f"{at} would slow by {_slowdown(phase)} ({_why(phase, remedy, pulls)}): do not enable it "
        "there" + (" as it is" if remedy is not None and remedy.forward.hidden else "")
    )


def offering(
    striped: Mapping[PhaseName, Forward], whole: tuple[Phase, ...], hidden_from: int | None
) -> str:
    """What stripes would do in the place of whole layers: prefill, then decode.

    `hidden_from` is the fewest tokens of a prefill that hides with stripes.
    """
    prefill, decode = whole
    said = (
        f"a prefill of {tokens(prefill.batch.tokens)} a rank slows by "
        f"{percent(striped['prefill'].slowdown)}"
        if hidden_from is None
        else f"a prefill hides from {tokens(hidden_from)} a rank"
    )
    here, at = striped["decode"], f"decode at batch {decode.batch.sequences:,.0f}"
    if here.hidden:
        return f"with placement striped {said}, and {at} hides"
    but = "but" if here.exposed > decode.asked.forward.exposed else "and"
    return f"with placement striped {said}, {but} {at} would slow by {percent(here.slowdown)}"


def _turns(thresholds: Thresholds, contention: tuple[float, float]) -> str:
    """From how many tokens on a prefill hides, and from how many it does not wait."""
    waits, least, most = thresholds
    if most is None:
        return ""
    said = f"never waits from {waits:,}" if waits is not None else "its first layers always wait"
    if least is not None and contention[0] < contention[1]:
        low, high = (f"{slower * 100:g}%" for slower in contention)
        said = f"at most 1% from {least:,} to {most:,} with contention of {low} to {high}; {said}"
    return f" from {tokens(most)} a rank ({said})"


def _slowdown(phase: Phase) -> str:
    """With the least contention and with the most."""
    least = percent(phase.with_least.slowdown)
    most = percent(phase.asked.forward.slowdown)
    return most if least == most else f"{least} to {most}"


def abstaining(hardware: Hardware, lacking: tuple[str, ...]) -> str:
    """The verdict without an estimate: the numbers that the device lacks, and who measures them."""
    across = any(lack.startswith(LABELS["inter_node"]) for lack in lacking)
    return (
        f"no estimate: {hardware.name} lacks {'; '.join(lacking)}. Give it in a profile "
        "(--hardware FILE.json)" + ("" if across else "; layershard calibrate measures one")
    )


def warned(sharding: Sharding, hardware: Hardware, fit: Fit | None, verdict: str) -> str:
    """The verdict, behind what comes first: whether the weights fit, and anything is saved."""
    net = beside_taken(sharding, hardware)
    if net.loses:
        least = min(net.saved_bytes)
        taken = taken_by(sharding, hardware).said
        counted = f", its {taken} counted" if taken else ""
        verdict = f"do not enable it: a rank saves nothing ({least:,} bytes{counted}); {verdict}"
    if fit is not None and not fit.fits:
        verdict = f"it does not fit: {exceeding(fit, hardware)}; {verdict}"
    return verdict


def _remedies(phase: Phase) -> list[_Remedy]:
    """What does better than the plan as asked for: first what costs least memory."""
    asked, best, kept = phase.asked, phase.best, phase.kept
    remedies = []
    if best.step > asked.step or best.forward.total < _BETTER * asked.forward.total:
        words = f"prefetch_step {best.step} does better than {asked.step}"
        remedies.append(_Remedy(words, best.forward))
    if kept is not None:
        words = f"with keep_first it would be {percent(kept.forward.slowdown)}"
        remedies.append(_Remedy(words, kept.forward))
    return remedies


def _preferred(remedies: list[_Remedy]) -> _Remedy | None:
    """The first remedy that hides or is within TOLERANCE of the fastest; None if there is none."""
    fastest = min((remedy.forward.total for remedy in remedies), default=0.0)
    for remedy in remedies:
        if remedy.forward.hidden or remedy.forward.total <= (1 + TOLERANCE) * fastest:
            return remedy
    return None


def _why(phase: Phase, remedy: _Remedy | None, pulls: bool) -> str:
    """Why a phase does not hide: what would help, or else what stands in the way."""
    return remedy.words if remedy is not None else _obstacle(phase.asked, pulls)


def _obstacle(asked: Trial, pulls: bool) -> str:
    """What keeps a forward from hiding that nothing helps."""
    forward = asked.forward
    if forward.link_bound:
        return "the link is the bound, no prefetch_step helps"
    if forward.stalled < forward.exposed / 2:
        shared = "pulls and compute share the memory"
        if not pulls:
            shared = "broadcasts and compute share the memory and the cores"
        return f"{shared}, no prefetch_step helps"
    return f"prefetch_step {asked.step} waits, and no other does better by 1 %"
