"""What is asked of the planner, read: the model, the layout and the configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any

from vllm_layershard.config import OPTIONS, LayerShardConfig, short
from vllm_layershard.errors import ConfigError
from vllm_layershard.estimate import Hardware
from vllm_layershard.estimate.capacity import cache_device_of
from vllm_layershard.models import Sharding, shard_model
from vllm_layershard.planner.layout import Layout, deployment_of, on_nodes_of
from vllm_layershard.planner.load import MAX_DRAFTED
from vllm_layershard.planner.loaded_model import LoadedModel, load_model
from vllm_layershard.planner.options import Options, config_for

ModelLike = LoadedModel | str | os.PathLike[str]
"""A model, or what `load_model` takes."""


def loaded(model: ModelLike) -> LoadedModel:
    """The model, loaded if it is not yet."""
    return model if isinstance(model, LoadedModel) else load_model(model)


def on_device(found: LoadedModel, device: Hardware) -> LoadedModel:
    """The model with its weights and its cache in the form that they have on this device.

    Raises:
        HardwareError: vLLM builds a class that the model needs on other devices only, or
            vllm-ascend has none.
    """
    model = found.model._replace(cache_device=cache_device_of(device))
    if model.cache_device.is_ascend and model.quantization != "none":
        from vllm_layershard.planner.devices.ascend import as_served

        model = model._replace(blueprint=as_served(found, device))
    elif model.quantization.startswith(("compressed_tensors", "quark")):  # others need none
        from vllm_layershard.planner.devices.kernels import require_kernels

        require_kernels(model, device)
    return found._replace(model=model)


def drafting(found: LoadedModel, mtp: int | None) -> LoadedModel:
    """The model with its own draft (MTP) layers, which draft `mtp` tokens in a step; None: without.

    Source: vLLM 0.32, config/speculative.py, `SpeculativeConfig`, for the tokens of several layers.

    Raises:
        ConfigError: no whole number within bounds, or a model whose draft layers are not read.
    """
    if mtp is None:
        return found
    if type(mtp) is not int or not 1 <= mtp <= MAX_DRAFTED:
        raise ConfigError(f"mtp = {short(mtp)}: give a whole number from 1 to {MAX_DRAFTED}")
    drafts = found.model.blueprint.drafts
    if drafts is None or not drafts.layers:
        raise ConfigError(
            f"--mtp: {found.name} states no draft (MTP) layers that the planner reads; leave it out"
        )
    modules = len(drafts.layers)
    if mtp > modules and mtp % modules:
        raise ConfigError(
            f"--mtp {mtp}: {found.name} has {modules} draft (MTP) layers, and vLLM 0.32 drafts no "
            f"more tokens than that, or a multiple of them; give {mtp - mtp % modules} or "
            f"{mtp - mtp % modules + modules}"
        )
    return found._replace(model=found.model._replace(drafted=mtp))


def require_known(options: Options, asked: Callable[..., Any]) -> None:
    """Refuse a keyword that is neither an argument of the function nor an option.

    Raises:
        ConfigError: names it, and what the function takes.
    """
    key = next((key for key in options if key not in OPTIONS), None)
    if key is None:
        return
    own = [
        name
        for name, parameter in signature(asked).parameters.items()
        if parameter.kind is not Parameter.VAR_KEYWORD
    ]
    if key in Layout._fields:
        written = "layout=Layout(dp=8, ep=True)" if "layout" in own else "layouts=['dp8+ep']"
        remedy = f"write {written}"
    else:
        known = [*own, *(name for name in Options.__annotations__ if name not in own)]
        remedy = f"those are {', '.join(known)}"
    raise ConfigError(f"{key}: is no argument of {asked.__name__}; {remedy}")


def require_one_source(
    config: LayerShardConfig | None, layers: str | Sequence[str] | None, options: Options
) -> None:
    """Refuse a configuration beside what it says already.

    Raises:
        ConfigError: there are both, or the configuration is none.
    """
    if config is None:
        return
    if not isinstance(config, LayerShardConfig):
        raise ConfigError(
            f"config = {short(config)}: is no LayerShardConfig; make one, or give layers and "
            "options"
        )
    if layers is not None or options:
        beside = ", ".join([*(["layers"] if layers is not None else []), *options])
        raise ConfigError(
            f"config says all of the sharding: leave out {beside}, or leave out config"
        )


def sharding_of(
    found: LoadedModel,
    layout: Layout | None,
    config: LayerShardConfig | None,
    layers: str | Sequence[str] | None,
    options: Options,
    ffn_tp: int | None = None,
    device: Hardware | None = None,
) -> tuple[Sharding, tuple[str, ...]]:
    """The plan, and what was assumed for it. `device`: where it is known.

    Raises:
        ConfigError: an option's value is not valid.
        PlanError: the layout or the names do not fit the model.
    """
    deployment, assumed = deployment_of(layout, found.model, ffn_tp)
    deployment = on_nodes_of(deployment, device)
    if config is None:
        config = config_for(found.model, deployment, layers, options)
    return shard_model(found.model, deployment, config), (*assumed, *found.notes)
