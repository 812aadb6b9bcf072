"""The linears of a model by their names within a layer, and which of them are an attention's."""

from __future__ import annotations

from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.layer_weights import copied_linears, layer_linears
from vllm_layershard.models.model import Model
from vllm_layershard.plan import Linear


def attention_suffixes(model: Model) -> frozenset[str]:
    """What the linears of its attentions are called within their layers."""
    b = model.blueprint
    kinds = dict.fromkeys(segment.attention for layer in b.layers for segment in layer)
    return frozenset(shape.suffix for kind in kinds for shape in kind.shapes(b.hidden, 1))


def linears_by_suffix(model: Model, deployment: Deployment) -> dict[str, list[Linear]]:
    """The linears of all hidden layers, as one rank holds them, in forward order.

    Raises:
        PlanError: this layout cannot split the model.
    """
    model.require_split(deployment)
    found: dict[str, list[Linear]] = {}
    for layer_id in range(model.num_layers):
        for segment in layer_linears(model.blueprint, layer_id, deployment):
            for shape, linear in segment:
                found.setdefault(shape.suffix, []).append(linear)
    return found


def copied_prefixes(model: Model, deployment: Deployment) -> frozenset[str]:
    """Those of hidden layers that vllm-ascend's MLAPO keeps whole copies of, on Ascend."""
    if not (model.mlapo and model.cache_device.is_ascend):
        return frozenset()
    return frozenset(
        linear.prefix
        for layer_id in range(model.num_layers)
        for linear in copied_linears(model.blueprint, layer_id, deployment)
    )


def shared_expert_prefixes(model: Model, deployment: Deployment) -> frozenset[str]:
    """Those of hidden layers that run within vLLM's op of the routed experts."""
    return frozenset(
        linear.prefix
        for layer_id in range(model.num_layers)
        for segment in layer_linears(model.blueprint, layer_id, deployment)
        for shape, linear in segment
        if shape.shared_expert
    )
