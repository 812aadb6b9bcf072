"""What a VllmConfig asks of layer sharding, and what it may not ask at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_layershard.config import KEY, LayerShardConfig
from vllm_layershard.errors import HostError
from vllm_layershard.hosts import cpu_dp
from vllm_layershard.hosts.deployment import launched_as, note_launch
from vllm_layershard.hosts.exchange.command import stated_with_exchange, with_published_command
from vllm_layershard.hosts.exchange.excluded import check_exchange
from vllm_layershard.hosts.exclusions import (
    breaking_lockstep,
    check_pulls,
    gpus_reach_each_other,
    leave_unregistered,
)
from vllm_layershard.hosts.moves.excluded import check_move
from vllm_layershard.hosts.names import IS_SUBMODEL_CONFIG
from vllm_layershard.plan import ParallelLayout, engines_that_share, sharing_layout
from vllm_layershard.plan.ascend_keys import of_linears
from vllm_layershard.runtime.report_file import make_writable
from vllm_layershard.schema import validated

if TYPE_CHECKING:
    from vllm.config import VllmConfig

GPUS_REACH = f"{KEY}_gpus_reach"
"""The key of `additional_config` that tells all workers what was found before any of them starts.
It is there only where GPUs reach each other."""

LOAD_FORMATS = frozenset({"auto", "hf", "safetensors", "pt", "npcache", "dummy", "mistral"})
"""They fill parameters through their weight loaders, layer by layer, on whatever device."""

_OPS = ("layershard::reach", "layershard::wait")
_MOVING_OPS = (*_OPS, "layershard::linear")
"""Those that a compiler sees where a forward may move tokens."""


def requested(vllm_config: VllmConfig) -> LayerShardConfig | None:
    """The layer sharding that the configuration asks for, or None.

    Raises:
        ConfigError: the value of the key is not valid, or of FlashComm2's variable beside it.
    """
    extra = vllm_config.additional_config
    if not isinstance(extra, dict) or KEY not in extra:
        return None
    tp = vllm_config.parallel_config.tensor_parallel_size
    return with_published_command(extra[KEY], validated(extra[KEY]), tp)


def is_served_model(model_config: Any) -> bool:
    """Whether this is the model that is served: neither a part of one nor a draft model."""
    part = IS_SUBMODEL_CONFIG.of(model_config, absent=False)
    return not part and model_config.runner_type != "draft"


def layout_of(vllm_config: VllmConfig, config: LayerShardConfig) -> ParallelLayout:
    """The ranks of one engine, or of all where they run in lockstep or pull from each other."""
    return engines_that_share(_asked_layout(vllm_config, config))


def _asked_layout(vllm_config: VllmConfig, config: LayerShardConfig) -> ParallelLayout:
    parallel = vllm_config.parallel_config
    return sharing_layout(
        tp=parallel.tensor_parallel_size,
        dp=launched_as(vllm_config).size,
        pcp=parallel.prefill_context_parallel_size,
        pp=parallel.pipeline_parallel_size,
        dcp=parallel.decode_context_parallel_size,
        is_moe=vllm_config.model_config.is_moe,
        config=config,
        gpus_reach=bool(vllm_config.additional_config.get(GPUS_REACH)),
    )


def check(vllm_config: VllmConfig) -> None:
    """Refuse a configuration that cannot be served sharded; runs before any worker starts.

    Effect: the ops become borders of the pieces of a piecewise-compiled model. So what is started
    in one captured graph is not left to be joined in another. It is noted how many data-parallel
    ranks were asked for (hosts/deployment.py), and whether their GPUs reach each other. An exchange
    that a variable asks for is written into the key: from it vLLM knows one compiled graph from
    another.

    Raises:
        ConfigError: the value of the key is not valid.
        PlanError: no rank has another to share with.
        HostError: vLLM's other settings exclude it.
    """
    model = vllm_config.model_config
    if model is None or not is_served_model(model):
        return
    config = requested(vllm_config)
    if config is None:
        return
    check_exchange(vllm_config, config)
    note_launch(vllm_config)
    _note_reach(vllm_config)
    layout = _asked_layout(vllm_config, config)
    layout.require_peers()
    check_move(vllm_config, config, layout)
    _check_loading(vllm_config)
    _check_execution(vllm_config)
    for why in of_linears(vllm_config.additional_config, config):
        raise HostError(why)
    if layout.one_sided:
        check_pulls(vllm_config, config, layout)
    else:
        leave_unregistered(vllm_config)
    if vllm_config.device_config.device_type == "cpu" and layout.dp > 1 and layout.dp_lockstep:
        cpu_dp.require()
    if config.report_dir is not None:  # last: it makes the directory
        make_writable(config.report_dir)
    extra = vllm_config.additional_config
    stated = stated_with_exchange(extra[KEY], config)
    vllm_config.additional_config = {**extra, KEY: stated}  # the user's own dict is left as it is
    pieces = vllm_config.compilation_config.splitting_ops
    if pieces and vllm_config.device_config.device_type != "cpu":
        ops = _OPS if config.move == "weights" else _MOVING_OPS
        pieces.extend(op for op in ops if op not in pieces)


def _note_reach(vllm_config: VllmConfig) -> None:
    """Note once whether GPUs reach each other: a worker sees fewer of them."""
    extra = vllm_config.additional_config
    if GPUS_REACH not in extra and gpus_reach_each_other(vllm_config):
        vllm_config.additional_config = {**extra, GPUS_REACH: True}


def _check_loading(vllm_config: VllmConfig) -> None:
    load_format = str(vllm_config.load_config.load_format)
    if load_format not in LOAD_FORMATS:
        raise HostError(
            f"{KEY}: load format {load_format!r} does not load through the layers' own loaders; "
            f"use one of {', '.join(sorted(LOAD_FORMATS))}"
        )
    if _quantises_while_loading(vllm_config):
        raise HostError(
            f"{KEY}: quantization {vllm_config.model_config.quantization!r} quantises the weights "
            "while they are loaded, on every rank; serve a checkpoint that is quantised already"
        )


def _quantises_while_loading(vllm_config: VllmConfig) -> bool:
    """Whether vLLM's online quantisation is asked for: only its configuration has such arguments.

    Where it is laid over a quantised checkpoint, the linears themselves are asked (hosts/model.py).
    """
    arguments = getattr(vllm_config.quant_config, "args", None)
    return getattr(arguments, "linear", None) is not None


def _check_execution(vllm_config: VllmConfig) -> None:
    excluded = [*breaking_lockstep(vllm_config)]
    if vllm_config.weight_transfer_config is not None:
        # It writes on each rank by itself, and the others would not be told.
        excluded.append("weight transfer (--weight-transfer-config)")
    for setting in excluded:
        raise HostError(f"{KEY}: cannot be combined with {setting}; use one of the two")
