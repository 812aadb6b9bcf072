"""Layer map: which rank stores which layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.planner.layout import Layout
from vllm_layershard.planner.loaded_model import Progress, evidence_of
from vllm_layershard.planner.options import Options
from vllm_layershard.planner.plan_warnings import warnings_on
from vllm_layershard.planner.question import (
    ModelLike,
    drafting,
    loaded,
    require_known,
    require_one_source,
    sharding_of,
)
from vllm_layershard.planner.results.map_result import MapResult


def map_layers(
    model: ModelLike,
    layers: str | Sequence[str] | None = None,
    layout: Layout | None = None,
    *,
    config: LayerShardConfig | None = None,
    ffn_tp: int | None = None,
    mtp: int | None = None,
    exact: bool = False,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> MapResult:
    """Map the layers of a model as `layershard map` does, and with `config` as `layershard check`.

    The arguments are those of `plan_model`.

    Raises:
        ConfigError: an argument's value is not valid.
        PlanError: the layout, the names or the step do not fit the model.
        ModelError: the model is not known or cannot be read.
    """
    require_known(options, map_layers)
    require_one_source(config, layers, options)
    found = drafting(loaded(model), mtp)
    sharding, assumed = sharding_of(found, layout, config, layers, options, ffn_tp)
    evidence, notes = evidence_of(found, exact=exact, progress=progress)
    return MapResult(sharding, evidence, (*assumed, *notes, *warnings_on(sharding, None)))
