"""The sentence that says whether activations or weights should move, and what decodes gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_layershard.estimate.activations.outcome import BothWays, Served
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.outcome import PhaseName
from vllm_layershard.estimate.wording import percent, tokens


def verdict_on(
    phases: Mapping[PhaseName, BothWays],
    threshold: int | None,
    alone: Served | None,
    shared: Served | None,
    hardware: Hardware,
    lacking: Sequence[str],
) -> str:
    """The rule, what a decode loses by each way, and tokens a second at the batch that fits."""
    if lacking:
        return f"no estimate: {hardware.name} lacks {'; '.join(lacking)}"
    return "; ".join([_rule(threshold), _said(phases["decode"]), *_gain(alone, shared)])


def _rule(threshold: int | None) -> str:
    if threshold is None:
        return "activations are quicker however many tokens a rank has"
    if threshold <= 1:
        return "weights are quicker however few tokens a rank has"
    return f"activations are quicker below {tokens(threshold)} a rank, weights from there on"


def _said(both: BothWays) -> str:
    weights, activations = both.weights / both.compute, both.activations / both.compute
    return (
        f"decode at batch {both.tokens:,} slows by {percent(activations)} where activations move, "
        f"by {percent(weights)} where weights do"
    )


def _gain(alone: Served | None, shared: Served | None) -> list[str]:
    if shared is None:
        return []
    if alone is None:
        return [f"{shared.rate:,.0f} tokens a second a rank, and none without sharding"]
    more = shared.sequences / alone.sequences - 1
    gain = shared.rate / alone.rate - 1
    word = "more" if gain >= 0 else "fewer"
    return [
        f"{alone.sequences:,} -> {shared.sequences:,} sequences a rank ({more:+.0%}), each "
        f"step {shared.step / alone.step - 1:+.1%}: {abs(gain):.1%} {word} tokens a second"
    ]
