"""A split of dense MLPs without sharding: `layershard check` of that key alone."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from vllm_layershard.models import require_experts
from vllm_layershard.models.ffn.split import split_mlps
from vllm_layershard.planner.layout import Layout, deployment_of
from vllm_layershard.planner.plan_warnings import DENSE_MLPS
from vllm_layershard.planner.question import ModelLike, loaded
from vllm_layershard.planner.results.document import document_of
from vllm_layershard.planner.results.facts import FfnFacts, ModelFacts, facts_of_split

_SECTIONS: Final = ("model", "parallel", "ffn", "warnings")
"""The keys of the document, each an attribute of the result."""


class DenseMlpsResult(NamedTuple):
    """The model, the layout, and what is split of it: None where the size is 1."""

    model: ModelFacts
    parallel: Layout
    ffn: FfnFacts | None
    warnings: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Plain data of JSON's types."""
        return document_of(self, _SECTIONS)


def split_dense_mlps(model: ModelLike, layout: Layout | None, ffn_tp: int) -> DenseMlpsResult:
    """Split a model's dense MLPs over so many data-parallel ranks each.

    Raises:
        ConfigError: no Layout, or no whole number.
        PlanError: the layout or the model gives no parts.
        ModelError: the model is not known or cannot be read.
    """
    found = loaded(model)
    deployment, assumed = deployment_of(layout, found.model, ffn_tp)
    require_experts(found.model, deployment)
    stages = split_mlps(found.model, deployment) if deployment.ffn > 1 else ()
    sizes, one = deployment.layout, found.model
    return DenseMlpsResult(
        model=ModelFacts(
            name=one.name,
            source=one.source,
            revision=found.revision,
            architecture=one.architecture,
            num_layers=one.num_layers,
            dtype=one.dtype,
            quantization=one.quantization,
        ),
        parallel=Layout(sizes.tp, sizes.dp, sizes.pcp, sizes.pp, deployment.ep),
        ffn=facts_of_split(stages, deployment),
        warnings=(*assumed, *found.notes, *([DENSE_MLPS] if stages else [])),
    )
