"""Settings of a host beside which what we do together on all ranks cannot be done."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.deployment import launched_as, reaches_other_nodes
from vllm_layershard.hosts.names import (
    ENABLE_CUMEM_ALLOCATOR,
    ENABLE_FAULT_TOLERANCE,
    ENABLE_HC_SP,
    KV_SHARING_FAST_PREFILL,
    MEGA_MOE_BACKENDS,
    SLEEP_MODE_BACKEND,
    SWA_BOUNDED_REPLAY,
)
from vllm_layershard.plan import ascend_keys

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from vllm_layershard.config import LayerShardConfig
    from vllm_layershard.plan import ParallelLayout

_FLASHCOMM1: Final = "VLLM_ASCEND_ENABLE_FLASHCOMM1"

_CONFS: Final = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
_ASYNC: Final = "cudaMallocAsync"
_EXPANDABLE: Final = re.compile(r"\bexpandable_segments:([^,]*)")
"""Where torch reads which allocator to use; the one whose memory nobody else can map; and what
others map only where they may trace its process: see runtime/peer_memory/cuda.py. torch leaves out
white space, obeys the last of several, and takes True and False alone. Source: torch 2.13,
c10/core/AllocatorConfig.h, `ConfigTokenizer`."""

_ONE_NODE: Final = ("mp", "uni")
"""The executors of vLLM's that start all workers of an engine on this node."""

_CUMEM: Final = "cumem"
"""The one backend of sleep mode that vLLM has itself; others come from plugins (since 0.32)."""

_REGISTER: Final = "NCCL_GRAPH_REGISTER"

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own: with its format


def breaking_lockstep(vllm_config: VllmConfig) -> dict[str, str]:
    """The settings that are given and keep ranks from one forward at a time, each with why."""
    parallel, offload = vllm_config.parallel_config, vllm_config.offload_config
    model = vllm_config.model_config
    twice = "the weights would move twice"
    known = {
        "dual batch overlap (--enable-dbo)": (
            parallel.use_ubatching,
            "two forwards at a time would meet in one collective",
        ),
        "elastic expert parallelism": (parallel.enable_elastic_ep, "its ranks come and go"),
        "fault tolerance (--enable-fault-tolerance)": (
            ENABLE_FAULT_TOLERANCE.of(parallel),
            "ranks leave, and the others go on",
        ),
        "the decoder replay of DeepSeek-V4.1 (--no-swa-bounded-replay turns it off)": (
            _replays_last_layers(vllm_config),
            "the last layers run apart from those that start their weights",
        ),
        "sleep mode by a plugin's backend (--sleep-mode-backend)": (
            model.enable_sleep_mode and SLEEP_MODE_BACKEND.of(model) != _CUMEM,
            "what it keeps of a process may lack communicators and memory of other ranks",
        ),
        "weight offloading (--cpu-offload-gb)": (offload.uva.cpu_offload_gb > 0, twice),
        "weight offloading (--offload-group-size)": (
            offload.prefetch.offload_group_size > 0,
            twice,
        ),
    }
    return {setting: why for setting, (present, why) in known.items() if present}


def _replays_last_layers(vllm_config: VllmConfig) -> bool:
    """Whether the layers behind the last one that writes a KV cache may run by themselves.

    They do on some of the rows, and are captured without the layers before them: nobody has started
    their weights then. Source: vLLM 0.32, models/deepseek_v41/decoder_replay_layers.py and
    nvidia/decoder_replay_cudagraph.py.
    """
    writers = getattr(vllm_config.model_config.hf_config, "kv_source_layer_ids", None)
    return bool(writers) and bool(SWA_BOUNDED_REPLAY.of(vllm_config.cache_config, absent=False))


def splitting_tokens(vllm_config: VllmConfig) -> list[str]:
    """The settings that are given and have layers run on shards of the tokens."""
    parallel = vllm_config.parallel_config
    passes = vllm_config.compilation_config.pass_config
    known = {
        "sequence parallelism of routed experts (--enable-expert-parallel with tensor and data "
        "parallelism)": _splits_for_experts(vllm_config),
        "sequence parallelism of routed experts (--enable-expert-parallel with tensor parallelism "
        "and a mega-MoE backend)": _splits_for_mega_moe(vllm_config),
        "--enable-hc-sp": parallel.tensor_parallel_size > 1
        and bool(ENABLE_HC_SP.of(parallel, absent=False)),
        "the compiler's enable_sp": getattr(passes, "enable_sp", False),  # before vLLM 0.32
        _FLASHCOMM1: os.environ.get(_FLASHCOMM1, "0") not in ("", "0"),
    }
    found = [setting for setting, present in known.items() if present]
    return [*found, *ascend_keys.splitting_tokens(vllm_config.additional_config)]


def _splits_for_experts(vllm_config: VllmConfig) -> bool:
    """With data parallelism. Some models do so whatever moves tokens to the experts.

    vLLM's own property lists what does. Source: vLLM 0.32, models/deepseek_v4/nvidia/model.py and
    models/kimi_k3/nvidia/model.py, which ask for data parallelism alone.
    """
    parallel = vllm_config.parallel_config
    asked = parallel.enable_expert_parallel and parallel.tensor_parallel_size > 1
    several = asked and parallel.data_parallel_size > 1
    return vllm_config.model_config.is_moe and (several or parallel.use_sequence_parallel_moe)


def _splits_for_mega_moe(vllm_config: VllmConfig) -> bool:
    """Whatever the data-parallel size. Source: vLLM 0.29 to 0.33, as above; in 0.33 step5, too."""
    parallel = vllm_config.parallel_config
    return (
        parallel.enable_expert_parallel
        and parallel.tensor_parallel_size > 1
        and parallel.pipeline_parallel_size == 1
        and vllm_config.kernel_config.moe_backend in MEGA_MOE_BACKENDS.imported()
    )


def leaving_tokens_behind(vllm_config: VllmConfig) -> list[str]:
    """The settings that are given and have the last layers of a forward run on some of its tokens.

    Which ones, each rank knows of its own requests alone. Source: vLLM 0.32, models/gemma4.py and
    gemma3n.py, `fast_prefill_forward`.
    """
    given = KV_SHARING_FAST_PREFILL.of(vllm_config.cache_config)
    return ["--kv-sharing-fast-prefill"] if given else []


def check_pulls(vllm_config: VllmConfig, config: LayerShardConfig, layout: ParallelLayout) -> None:
    """Refuse what a pull cannot reach: other nodes' memory, and memory that changes hands.

    Raises:
        HostError: names the setting, and what to do.
    """
    if layout.pulls_over(several_nodes=reaches_other_nodes(vllm_config.parallel_config)):
        raise HostError(
            f"{KEY}: its ranks would be on several nodes, and weights are pulled within one node "
            f"only; put all data-parallel ranks on one{_or_broadcast(config, layout)}"
        )
    for setting in _allocators(vllm_config):
        raise HostError(
            f"{KEY}: with {setting} weights are in memory that no other process can map, so "
            f"they cannot be pulled; leave {setting} out{_or_broadcast(config, layout)}"
        )


def _or_broadcast(config: LayerShardConfig, layout: ParallelLayout) -> str:
    """The other remedy, where ranks that broadcast would have somebody to share with."""
    if replace(layout, one_sided=False).group_size(tp_replicated=True) < 2:
        return ""
    if config.placement == "striped":
        return ", or use placement 'round_robin' with transport 'broadcast'"
    return ", or use transport 'broadcast'"


def leave_unregistered(vllm_config: VllmConfig) -> None:
    """Have NCCL map nothing of other ranks' for captured broadcasts, where they may sleep.

    Effect: NCCL_GRAPH_REGISTER=0 in this process, which workers inherit, as vLLM itself relies on
    (0.32, config/vllm.py). What is registered stays mapped while its owner gives the pages away.

    Raises:
        HostError: it is set otherwise.
    """
    graphs = vllm_config.compilation_config.cudagraph_mode
    captured = graphs is not None and graphs.name != "NONE"
    if not captured or vllm_config.device_config.device_type != "cuda":
        return
    for setting in _allocators(vllm_config):
        value = os.environ.setdefault(_REGISTER, "0")
        if value != "0":
            raise HostError(
                f"{KEY}: with {setting} and {_REGISTER}={value} other ranks keep memory mapped "
                "that sleep gives away, and captured broadcasts would write there; unset "
                f"{_REGISTER}, or leave {setting} out"
            )


def gpus_reach_each_other(vllm_config: VllmConfig) -> bool:
    """Whether all ranks are on GPUs of this node, and each can map the memory of every other.

    It is as the driver says of their fast link, without a context on any of them. Not where it is
    not known: parts that are launched apart may be in containers of their own, and other executors
    (Ray's) may place workers on other nodes. Nor where a process must be allowed to trace another
    to map its memory.
    """
    parallel, launch = vllm_config.parallel_config, launched_as(vllm_config)
    if vllm_config.device_config.device_type != "cuda" or launch.in_parts or parallel.nnodes > 1:
        return False
    by_ray = parallel.data_parallel_backend == "ray"
    if by_ray or parallel.distributed_executor_backend not in _ONE_NODE:
        return False
    confs = ["".join(os.environ.get(name, "").split()) for name in _CONFS]
    if any(_ASYNC in conf or _expands(conf) for conf in confs):
        return False
    if _allocators(vllm_config):
        return False
    from vllm.platforms import current_platform

    ranks = range(launch.size * parallel.world_size)
    try:
        gpus = [current_platform.device_id_to_physical_device_id(rank) for rank in ranks]
        return bool(current_platform.is_fully_connected(gpus))
    except Exception as error:  # of the driver's library, or of fewer GPUs than ranks
        logger.info("Layer sharding: it is not known which GPUs reach each other (%s)", error)
        return False


def _expands(conf: str) -> bool:
    """Whether segments grow; also where torch will refuse what is said of it."""
    stated = _EXPANDABLE.findall(conf)
    return bool(stated) and stated[-1] != "False"


def _allocators(vllm_config: VllmConfig) -> list[str]:
    """The settings that are given and allocate weights where no other process can map them."""
    model = vllm_config.model_config
    known = {
        "--enable-sleep-mode": model.enable_sleep_mode,
        "--enable-cumem-allocator": ENABLE_CUMEM_ALLOCATOR.of(model),
    }
    return [setting for setting, present in known.items() if present]
