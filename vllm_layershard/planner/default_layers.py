"""The linears that are sharded where nobody names any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vllm_layershard.config import refusal_of
from vllm_layershard.models import Deployment, Model, attention_linears, is_min_latency
from vllm_layershard.plan import Linear, ParallelLayout
from vllm_layershard.plan.linear import short_names, suffix_of

LEAST_SHARE: Final = 5
"""A default linear has at least a fifth of the bytes of the largest one."""


def default_names(model: Model, deployment: Deployment) -> list[str]:
    """The large linears of the attention, in every kind of layer, that ranks hold copies of.

    Large is what has at least a fifth of the bytes of the largest one, each taken whole: so the
    names do not depend on tensor parallelism. Where ranks hold copies of none, all of them: what
    plans them says why they cannot be shared. The largest comes first.
    """
    sizes = _whole_bytes(model, deployment)
    least = max(sizes.values(), default=0) / LEAST_SHARE
    large = [name for name in sorted(sizes, key=lambda name: -sizes[name]) if sizes[name] >= least]
    linears = attention_linears(model, deployment)
    copied = {suffix_of(linear.prefix) for linear in linears if _copies(linear, deployment) > 1}
    names = _names(model.linears(deployment))
    return [names[suffix] for suffix in large if suffix in copied or not copied & set(large)]


def _whole_bytes(model: Model, deployment: Deployment) -> dict[str, int]:
    """The bytes of each linear of the attention that may be sharded, the most of all layers."""
    whole = deployment if deployment.layout.tp == 1 else Deployment(ParallelLayout())
    sizes: dict[str, int] = {}
    for linear in attention_linears(model, whole):
        suffix = suffix_of(linear.prefix)
        if refusal_of(suffix) is None and not is_min_latency(linear):
            sizes[suffix] = max(sizes.get(suffix, 0), linear.large_bytes)
    return sizes


def _copies(linear: Linear, deployment: Deployment) -> int:
    layout = deployment.layout
    return layout.dp * layout.pcp * (layout.tp if linear.tp_replicated else 1)


def _names(linears: Sequence[Linear]) -> dict[str, str]:
    """Of each linear's name within its layer the shortest end that names no other."""
    suffixes = dict.fromkeys(suffix_of(linear.prefix) for linear in linears)
    return dict(zip(suffixes, short_names(linears), strict=True))
