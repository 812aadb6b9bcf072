"""The linears that are sharded where nobody names any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from vllm_layershard.models import (
    Deployment,
    Model,
    attention_suffixes,
    copied_prefixes,
    is_min_latency,
    linears_by_suffix,
)
from vllm_layershard.never_sharded import refusal_of
from vllm_layershard.plan import Linear, ParallelLayout
from vllm_layershard.plan.linear import short_names

LEAST_SHARE: Final = 5
"""A default linear has at least a fifth of the bytes of the largest one."""


def default_names(model: Model, deployment: Deployment) -> list[str]:
    """The large linears of the attention, in every kind of layer, that ranks hold copies of.

    Large is what has at least a fifth of the bytes of the largest one, each taken whole: so the
    names do not depend on tensor parallelism. Of a linear whose layers differ the largest layer
    counts; the largest linear is measured by the form that most of its layers have. A linear of one
    layer is left out beside others: it has no layer to be moved ahead of. Where ranks hold copies
    of none, all of them: what plans them says why they cannot be shared. The largest comes first.

    Raises:
        PlanError: this layout cannot split the model.
    """
    linears = linears_by_suffix(model, deployment)
    tp = deployment.layout.tp
    whole = linears if tp == 1 else linears_by_suffix(model, Deployment(ParallelLayout()))
    attention = attention_suffixes(model)
    by_mlapo = copied_prefixes(model, deployment)
    sizes = {
        suffix: max(map(_bytes, whole[suffix]))
        for suffix in whole
        if suffix in attention
        and refusal_of(suffix) is None
        and not any(is_min_latency(x) or x.prefix in by_mlapo for x in whole[suffix])
    }
    least = max((_usual(whole[suffix]) for suffix in sizes), default=0) / LEAST_SHARE
    large = [name for name in sorted(sizes, key=lambda name: -sizes[name]) if sizes[name] >= least]
    several = [name for name in large if len(linears[name]) > 1] or large
    copied = [name for name in several if _copies(linears[name][0], deployment) > 1]
    short = short_names(alike[0] for alike in linears.values())
    names = dict(zip(linears, short, strict=True))
    return [names[suffix] for suffix in copied or several]


def _bytes(linear: Linear) -> int:
    return sum(tensor.nbytes for tensor in linear.tensors)


def _usual(linears: Sequence[Linear]) -> int:
    """The bytes that most of them have; of several such sizes the largest."""
    counts = Counter(map(_bytes, linears))
    return max(counts, key=lambda nbytes: (counts[nbytes], nbytes))


def _copies(linear: Linear, deployment: Deployment) -> int:
    layout = deployment.layout
    return layout.dp * layout.pcp * (layout.tp if linear.tp_replicated else 1)
