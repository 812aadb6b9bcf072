"""The sentence that says in which forwards an exchange of tokens gains time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_layershard.estimate.exchange.linears import Alike
from vllm_layershard.estimate.exchange.outcome import ExchangeTimes
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.outcome import PhaseName
from vllm_layershard.estimate.wording import percent, tokens


def verdict_on(
    linears: Sequence[Alike],
    phases: Mapping[PhaseName, ExchangeTimes],
    wins_from: int | None,
    hardware: Hardware,
    lacking: Sequence[str],
) -> str:
    """Never, from how many tokens on, and what the forwards that were asked about gain or lose."""
    if all(one.traffic.ratio >= 1 for one in linears):
        return f"never wins: {more_bytes(linears)}"
    if lacking:
        return f"no estimate: {hardware.name} lacks {'; '.join(lacking)}"
    if wins_from is None:
        return "never wins: two collectives and the whole weight take longer than the all-reduce"
    prefill, decode = phases["prefill"], phases["decode"]
    said = f"wins from {tokens(wins_from)} a forward; {_said('prefill', prefill)}"
    only = ": prefill only" if prefill.wins and not decode.wins else ""
    return f"{said}; {_said('decode', decode)}{only}"


def more_bytes(linears: Sequence[Alike]) -> str:
    """What sends at least as many bytes as the all-reduce, in words; "" where nothing does."""
    said = []
    for name in dict.fromkeys(one.name for one in linears):
        traffic = next(one.traffic for one in linears if one.name == name)
        if traffic.ratio >= 1:
            wider = traffic.inner / traffic.width
            said.append(
                f"over {traffic.ranks} ranks {name} sends {traffic.ratio:.2f} times the bytes of "
                f"the all-reduce, as its input is {wider:.2f} times as wide as its output; it "
                f"takes {traffic.least_ranks} ranks or more"
            )
    return "; ".join(said)


def _said(name: PhaseName, times: ExchangeTimes) -> str:
    """One phase: microseconds a layer, and the share of the forward."""
    micros, share = abs(times.longer) * 1e6, abs(times.share)
    forward = f"a {name} of {tokens(times.tokens)}"
    if times.wins:
        return f"{forward} gains {micros:,.1f} us a layer ({percent(share)} of its compute)"
    reads = (times.whole.product - times.split.product) * 1e6
    waits = (times.whole.collectives - times.split.collectives) * 1e6
    return (
        f"{forward} loses {micros:,.1f} us a layer ({percent(share)} of its compute; whole weights "
        f"{reads:+,.1f}, collectives {waits:+,.1f})"
    )
