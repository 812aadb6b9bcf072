"""The linears of a model that belong to an attention."""

from __future__ import annotations

from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.model import Model
from vllm_layershard.plan import Linear
from vllm_layershard.plan.linear import suffix_of


def attention_linears(model: Model, deployment: Deployment) -> tuple[Linear, ...]:
    """Those of every attention of every hidden layer, as one rank holds them.

    Raises:
        PlanError: this layout cannot split the model.
    """
    b = model.blueprint
    kinds = dict.fromkeys(segment.attention for layer in b.layers for segment in layer)
    suffixes = {shape.suffix for kind in kinds for shape in kind.shapes(b.hidden, 1)}
    return tuple(x for x in model.linears(deployment) if suffix_of(x.prefix) in suffixes)
