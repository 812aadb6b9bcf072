"""What the hosts rely on in vLLM, read from its sources without importing or installing them."""

from __future__ import annotations

import ast
import importlib.util
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

_LAYERS = "vllm/model_executor/layers"
_LOADER = "vllm/model_executor/model_loader"

CONTRACT: dict[str, dict[str, tuple[str, ...] | None]] = {
    "vllm/plugins/__init__.py": {"load_general_plugins": ()},
    "vllm/config/vllm.py": {
        "VllmConfig.__post_init__": ("self",),
        "VllmConfig.additional_config": None,
        "VllmConfig.offload_config": None,
        "VllmConfig.weight_transfer_config": None,
    },
    "vllm/config/model.py": {
        "ModelConfig.is_moe": ("self",),
        "ModelConfig.enable_sleep_mode": None,
        "ModelConfig.sleep_mode_backend": None,
        "ModelConfig.enable_cumem_allocator": None,
        "ModelConfig.revision": None,
    },
    "vllm/config/cache.py": {"CacheConfig.kv_sharing_fast_prefill": None},
    "vllm/config/kernel.py": {"KernelConfig.moe_backend": None},
    "vllm/config/load.py": {"LoadConfig.load_format": None},
    "vllm/forward_context.py": {
        "BatchDescriptor.num_tokens": None,
        "ForwardContext.batch_descriptor": None,
        "ForwardContext.is_padding": None,
        "ForwardContext.dp_metadata": None,
        "DPMetadata.num_tokens_across_dp_cpu": None,
    },
    "vllm/config/compilation.py": {"CompilationConfig.splitting_ops": None},
    "vllm/config/offload.py": {
        "UVAOffloadConfig.cpu_offload_gb": None,
        "PrefetchOffloadConfig.offload_group_size": None,
    },
    "vllm/config/parallel.py": {
        "ParallelConfig.tensor_parallel_size": None,
        "ParallelConfig.data_parallel_size": None,
        "ParallelConfig.prefill_context_parallel_size": None,
        "ParallelConfig.decode_context_parallel_size": None,
        "ParallelConfig.pipeline_parallel_size": None,
        "ParallelConfig.data_parallel_size_local": None,
        "ParallelConfig.data_parallel_index": None,
        "ParallelConfig.data_parallel_master_ip": None,
        "ParallelConfig.data_parallel_master_port": None,
        "ParallelConfig.data_parallel_rpc_port": None,
        "ParallelConfig.master_addr": None,
        "ParallelConfig.nnodes": None,
        "ParallelConfig.reconfigure_for_independent_dp_rank": ("self",),
        "ParallelConfig.enable_elastic_ep": None,
        "ParallelConfig.enable_expert_parallel": None,
        "ParallelConfig.use_sequence_parallel_moe": ("self",),
        "ParallelConfig.enable_fault_tolerance": None,
        "ParallelConfig.distributed_timeout_seconds": None,
        "ParallelConfig.cpu_distributed_timeout_seconds": None,
        "ParallelConfig.use_ubatching": ("self",),
    },
    "vllm/distributed/parallel_state.py": {
        "get_pp_group": (),
        "get_dp_group": (),
        "get_tp_group": (),
    },
    "vllm/distributed/device_communicators/cpu_communicator.py": {"CpuCommunicator": None},
    f"{_LAYERS}/linear.py": {
        "LinearBase": None,
        "ReplicatedLinear": None,
        "UnquantizedLinearMethod": None,
        "LinearMethodBase.apply": ("self", "layer", "x", "bias"),
        "RowParallelLinear.__init__": (
            "self",
            "input_size",
            "output_size",
            "bias",
            "input_is_parallel",
            "skip_bias_add",
            "params_dtype",
            "reduce_results",
            "quant_config",
            "prefix",
            "return_bias",
            "disable_tp",
        ),
    },
    "vllm/model_executor/custom_op.py": {"maybe_get_oot_by_class": ("class_type",)},
    "vllm/compilation/breakable_cudagraph.py": {"eager_break_during_capture": ("fn",)},
    "vllm/model_executor/models/interfaces.py": {
        "supports_multimodal": ("model",),
        "SupportsMultiModal.get_language_model": ("self",),
    },
    f"{_LAYERS}/quantization/base_config.py": {
        "QuantizeMethodBase.uses_meta_device": None,
        "QuantizeMethodBase.process_weights_after_loading": ("self", "layer"),
    },
    f"{_LAYERS}/fused_moe/runner/moe_runner.py": {"MoERunner._select_forward": ("self",)},
    f"{_LOADER}/utils.py": {
        "initialize_model": ("vllm_config", "prefix", "model_class", "model_config"),
    },
    f"{_LOADER}/weight_utils.py": {
        "default_weight_loader": ("param", "loaded_weight"),
        "initialize_single_dummy_weight": ("param", "low", "high", "seed"),
    },
    f"{_LOADER}/reload/layerwise.py": {
        "record_metadata_for_reloading": ("model",),
        "_layerwise_process": ("layer", "info"),
        "_copy_and_restore_kernel_tensors": ("layer", "info"),
    },
    "vllm/v1/worker/gpu_model_runner.py": {
        "GPUModelRunner.reload_weights": (
            "self",
            "weights_iterator",
            "weights_path",
            "is_checkpoint_format",
        ),
        "GPUModelRunner.execute_model": None,
        "GPUModelRunner.get_model": ("self",),
    },
    "vllm/v1/worker/gpu/model_runner.py": {
        "GPUModelRunner.reload_weights": None,
        "GPUModelRunner.execute_model": None,
        "GPUModelRunner.get_model": ("self",),
    },
    "vllm/v1/worker/gpu_worker.py": {
        "Worker.execute_dummy_batch": ("self",),
        "Worker.checkpoint_prepare": ("self",),
        "Worker.get_model": ("self",),
    },
}
"""File -> dotted name -> the parameters of a function; None for a class or a field."""

ADDED = {"initialize_single_dummy_weight": ("name",)}
"""Parameters that a function has in later releases too, and that are given where it has them."""

TEXTS = {
    f"{_LAYERS}/fused_moe/runner/moe_runner.py": "self._shared_experts = SharedExperts(",
    f"{_LOADER}/base_loader.py": "initialize_model(",
    f"{_LAYERS}/linear.py": "_cpu_skip_gemm_dispatch",
    "vllm/config/model.py": "self.runner_type = ",
    "vllm/config/kernel.py": "MEGA_MOE_BACKENDS = ",
    "vllm/envs.py": '"VLLM_LORA_ENABLE_DUAL_STREAM": lambda',
    "vllm/v1/worker/gpu_model_runner.py": "batch_descriptor=batch_desc,",
    "vllm/v1/worker/gpu/model_runner.py": "batch_descriptor=batch_descriptor,",
    "vllm/v1/worker/gpu/cudagraph_utils.py": "                    is_padding=",
}
"""What is used there by name, though it is no symbol of the file."""

Reader = Callable[[str], str]


def installed() -> Reader:
    """Reads the sources of the vLLM that is installed here."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parents[1]
    return lambda file: (root / file).read_text()


def wheel(path: Path) -> Reader:
    """Reads the sources that a wheel holds."""
    return partial(_from_wheel, path)


def _from_wheel(path: Path, file: str) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read(file).decode()


def breaches(read: Reader) -> list[str]:
    """What the contract names and the sources lack or have otherwise."""
    found = []
    for file, names in CONTRACT.items():
        symbols = dict(_symbols(ast.parse(read(file)).body))
        for name, parameters in names.items():
            if name not in symbols:
                found.append(f"{file}: no {name}")
            elif parameters is not None and symbols[name] not in (
                parameters,
                (*parameters, *ADDED.get(name, ())),
            ):
                found.append(f"{file}: {name}{symbols[name]}, not {parameters}")
    found += [f"{file}: no {text!r}" for file, text in TEXTS.items() if text not in read(file)]
    return found


def _symbols(
    body: list[ast.stmt], prefix: str = ""
) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield prefix + node.name, None
            yield from _symbols(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            arguments = node.args
            listed = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
            yield prefix + node.name, tuple(argument.arg for argument in listed)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield prefix + node.target.id, None
