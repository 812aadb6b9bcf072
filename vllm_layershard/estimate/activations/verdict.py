"""The sentence that says whether activations or weights should move, and what decodes gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_layershard.estimate.activations.outcome import BothWays, Served
from vllm_layershard.estimate.forwards.thresholds import MAX_TOKENS
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.outcome import PhaseName
from vllm_layershard.estimate.wording import changes, percent, tokens
from vllm_layershard.plan.move import MoveRule


def verdict_on(
    planned: MoveRule,
    phases: Mapping[PhaseName, BothWays],
    threshold: int | None,
    served: tuple[Served | None, Served | None],
    hardware: Hardware,
    lacking: Sequence[str],
) -> str:
    """What is quicker, what a decode loses by each way, and tokens a second at the batch that fits.

    Where another rule is planned than that of the threshold, the verdict says so. `served` are
    decodes without sharding and with it.
    """
    if lacking:
        return f"no estimate: {hardware.name} lacks {'; '.join(lacking)}"
    rule = f"{_rule(threshold)}{_other(planned, threshold)}"
    return "; ".join([rule, _said(phases["decode"]), *_gain(*served)])


def _other(planned: MoveRule, threshold: int | None) -> str:
    """What is planned, where it is something else."""
    if planned.weights_from is None:
        return "" if threshold is None else ", but activations are planned in every forward"
    if planned.weights_from == (MAX_TOKENS if threshold is None else threshold):
        return ""
    return f", but weights are planned from {tokens(planned.weights_from)} a rank on"


def _rule(threshold: int | None) -> str:
    if threshold is None:
        return "activations are quicker however many tokens a rank has"
    if threshold <= 1:
        return "weights are quicker however few tokens a rank has"
    return f"activations are quicker below {tokens(threshold)} a rank, weights from there on"


def _said(both: BothWays) -> str:
    of_activations, of_weights = both.activations_share, both.weights_share
    verb, by = changes(of_activations), f"by {percent(of_weights)}"
    if verb != f"slows by {percent(of_activations)}":  # few tokens spare reading the weight
        by = changes(of_weights)
    return (
        f"decode at batch {both.batch.sequences:,.0f} {verb} where activations move, {by} where "
        "weights do"
    )


def _gain(alone: Served | None, shared: Served | None) -> list[str]:
    if shared is None:
        return []
    if alone is None:
        return [
            f"{shared.rate:,.0f} tokens a second a rank where {shared.moves} move, and none "
            "without sharding"
        ]
    more = shared.sequences / alone.sequences - 1
    gain = shared.rate / alone.rate - 1
    said = f"{abs(gain):.1%} {'more' if gain >= 0 else 'fewer'} tokens a second"
    return [
        f"{alone.sequences:,} -> {shared.sequences:,} sequences a rank ({more:+.0%}), each "
        f"step {shared.step / alone.step - 1:+.1%} where {shared.moves} move: {said}"
    ]
