"""What sharding saves on each rank, and whether the movement hides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import ConfigError
from vllm_layershard.estimate import Hardware, forecast
from vllm_layershard.estimate.capacity import limit_of, may_fit
from vllm_layershard.models import Sharding
from vllm_layershard.planner.hardware import device_of
from vllm_layershard.planner.layout import Layout, deployment_of, on_nodes_of
from vllm_layershard.planner.load import as_launched, sizes_of
from vllm_layershard.planner.loaded_model import LoadedModel, Progress, evidence_of
from vllm_layershard.planner.options import AUTO, Options, names_of, with_some_threshold
from vllm_layershard.planner.paying import PREFILL, offer_of, phases_of
from vllm_layershard.planner.plan_warnings import (
    warnings_on,
    warnings_on_length,
    warnings_on_load,
)
from vllm_layershard.planner.question import (
    ModelLike,
    drafting,
    loaded,
    on_device,
    require_known,
    require_one_source,
    sharding_of,
)
from vllm_layershard.planner.results.plan_result import PlanResult
from vllm_layershard.planner.serve_command import launch_warnings

if TYPE_CHECKING:
    from vllm_layershard.planner.search.auto import Conditions


def plan_model(
    model: ModelLike,
    layers: str | Sequence[str] | None = None,
    layout: Layout | None = None,
    *,
    config: LayerShardConfig | None = None,
    hardware: str | Hardware | None = None,
    tokens: int | None = None,
    batch: int | None = None,
    context: int | None = None,
    prompt: int | None = None,
    cached: int | None = None,
    hide_in: str | Sequence[str] | None = None,
    kv_cache_dtype: str = "auto",
    ffn_tp: int | None = None,
    mtp: int | None = None,
    exact: bool = False,
    progress: Progress | None = None,
    traced: bool = False,
    **options: Unpack[Options],
) -> PlanResult:
    """Plan a model as `layershard plan` does.

    `layers` are dotted suffixes of linears; None: the default ones; "auto": those that save most
    while each phase of `hide_in` stays hidden. `options` are keys of the configuration. `config`
    says both at once. Without `layout` or `hardware` the result says what was assumed.

    The forwards that are simulated are a prefill of `tokens` on each rank, and a decode of
    `batch` sequences on each rank, each after `context` tokens; with their timelines if `traced`.
    The prefill is of one prompt, or of prompts of `prompt` tokens each, each of them after `cached`
    tokens that are in the cache already. With `mtp` the model's own draft layers are loaded and
    draft so many tokens a step, which a decode verifies: their weights and their cache are counted,
    the time of their own forwards is not.
    `exact` asks the Hub for the checkpoint's safetensors headers where they are not at hand, and
    calls `progress` with how many of how many files have been asked for. With `ffn_tp` so many
    data-parallel ranks split each dense MLP of a model with routed experts.

    Raises:
        ConfigError: an argument's value is not valid.
        PlanError: the layout, the names or the step do not fit the model.
        ModelError: the model is not known or cannot be read.
        HardwareError: the device is not known, lacks a number that "auto" needs, or has no class of
            vLLM's for the model's quantisation.
    """
    require_known(options, plan_model)
    phases = None if hide_in is None else phases_of(hide_in)
    require_one_source(config, layers, options)
    sizes = sizes_of(tokens, batch, context, prompt, cached)
    device = device_of(hardware)
    read = loaded(model)
    found = drafting(on_device(read, device), mtp)
    options, open_threshold = with_some_threshold(options)
    chooses = layers is not None and names_of(layers) == [AUTO]
    if chooses:
        from vllm_layershard.planner.search.auto import Conditions  # seldom asked for

        conditions = Conditions(device, sizes, phases or PREFILL, open_threshold)
        sharding, assumed = _chosen(found, layout, options, conditions, ffn_tp)
    elif phases is not None:
        raise ConfigError("--hide-in goes with --layers auto or --check")
    else:
        sharding, assumed = sharding_of(found, layout, config, layers, options, ffn_tp, device)
    launched = as_launched(sharding.model, sharding.deployment.layout, sizes)
    sharding = sharding._replace(model=launched)
    sharding.stage_kv_bytes(kv_cache_dtype)  # refuses a dtype before anything is simulated
    if open_threshold:
        from vllm_layershard.planner.search.threshold import with_threshold  # seldom asked for

        sharding, note = with_threshold(sharding, device, sizes, kv_cache_dtype)
        assumed = (*assumed, *note)
    if hardware is None:
        assumed = (*assumed, f"assumed {device.name} devices for the times; give --hardware")
    expected, offer = offer_of(sharding, forecast(sharding, device, **sizes, traced=traced))
    evidence, notes = evidence_of(read, exact=exact, progress=progress)
    warnings = (
        *assumed,
        *notes,
        *warnings_on(sharding, device),
        *warnings_on_length(found.found.config.values, sizes),
        *warnings_on_load(sharding, device, expected.batches["decode"], kv_cache_dtype),
        *(launch_warnings(sharding, device) if may_fit(expected.fit) else ()),
    )
    limit = limit_of(sharding, device, kv_cache_dtype)
    return PlanResult(sharding, expected, evidence, kv_cache_dtype, warnings, limit, offer)


def _chosen(
    found: LoadedModel,
    layout: Layout | None,
    options: Options,
    conditions: Conditions,
    ffn_tp: int | None,
) -> tuple[Sharding, tuple[str, ...]]:
    """The plan of the layers that the planner chooses, and what was assumed for it and chosen."""
    from vllm_layershard.planner.search.auto import chosen_sharding

    deployment, assumed = deployment_of(layout, found.model, ffn_tp)
    deployment = on_nodes_of(deployment, conditions.hardware)
    model = as_launched(found.model, deployment.layout, conditions.sizes)
    sharding, note = chosen_sharding(model, deployment, options, conditions)
    return sharding, (*assumed, *found.notes, note)
