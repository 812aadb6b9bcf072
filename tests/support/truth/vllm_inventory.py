"""Run as a script: builds vLLM's own model class and prints what it holds.

Input: a JSON list of {name, directory, tp, dp, ep, refused}; output: one JSON object by name. Of
what may be refused it is what vLLM says where it refuses.

One process stands for rank 0 of each layout: the groups are told their size, nothing is sent.
Kernel choices that this machine's CPU refuses (fp8, sparse attention) are stood in for: they have
no say in which weights are created.
"""

import json
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from unittest.mock import patch

import torch
from transformers import AutoConfig, PretrainedConfig
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel, parallel_state
from vllm.distributed.utils import get_pp_indices
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager
from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.int8 import Int8MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import WNA16MoEBackend
from vllm.model_executor.layers.fused_moe.oracle.mxfp4 import Mxfp4MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.w4a8 import W4A8MoeBackend
from vllm.model_executor.layers.linear import LinearBase, ReplicatedLinear, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.utils import get_model_cls, initialize_model
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity, get_kv_cache_configs
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec

from truth.ascend_pages import aligned, padded

CACHE_BYTES = 256 << 30
STEP_TOKENS = 8192

CACHE_SCALES = (
    *("q_scale", "k_scale", "v_scale", "prob_scale"),
    *("q_zero_point", "k_zero_point", "v_zero_point"),
)
"""vLLM deletes them after loading (layers/quantization/kv_cache.py), but for 12 bytes a layer of
zero points that compressed-tensors does not use."""

QUANTIZATION = "vllm.model_executor.layers.quantization"
ORACLE = "vllm.model_executor.layers.fused_moe.oracle"
MOE = "compressed_tensors.compressed_tensors_moe.compressed_tensors_moe"
QUARK = "quark.schemes.quark"
SCHEMES = "compressed_tensors.schemes.compressed_tensors"
METHODS = (
    "fbgemm_fp8",
    "fp8",
    "mxfp4",
    "modelopt",
    "auto_awq",
    "auto_gptq",
    "quark.quark_moe",
    "inc.schemes.inc_mxfp4_linear",
    "inc.schemes.inc_mxfp4_moe",
    "inc.schemes.inc_mxfp8_linear",
    "inc.schemes.inc_mxfp8_moe",
    "utils.marlin_utils",
    f"{QUARK}_w8a8_fp8",
    f"{QUARK}_ocp_mx",
    f"{QUARK}_w8a8_int8",
    f"{QUARK}_w4a16_int4",
    f"{QUARK}_nvfp4",
    f"{SCHEMES}_w8a8_fp8",
    f"{SCHEMES}_w8a8_int8",
    f"{SCHEMES}_w8a16_fp8",
    f"{SCHEMES}_w4a4_mxfp4",
    f"{SCHEMES}_w8a8_mxfp8",
    f"{SCHEMES}_w4a4_nvfp4",
    f"{SCHEMES}_wNa16",
    f"{SCHEMES}_wNa8",
    f"{SCHEMES}_wNa4",
    f"{SCHEMES}_w4a8_fp8",
    f"{SCHEMES}_w4a8_int",
    f"{SCHEMES}_w4a8_mxfp4",
    f"{MOE}_w8a8_fp8",
    f"{MOE}_w8a8_int8",
    f"{MOE}_w4a4_mxfp4",
    f"{MOE}_w8a8_mxfp8",
    f"{MOE}_w4a4_nvfp4",
    f"{MOE}_wna16",
    f"{MOE}_w4a8_fp8",
)


class Kernel:
    """Stands in for a kernel that this machine lacks: there is nothing to call but what is here."""

    def __init__(self, *config: object, **names: str) -> None:
        """As the kernels of mixed precision are made; the others are chosen made."""

    def input_quant_key(self) -> None:
        """It would take activations as they come."""


CHOICES = {
    "init_fp8_linear_kernel": lambda **_: Kernel(),
    "init_int8_linear_kernel": lambda **_: Kernel(),
    "init_nvfp4_linear_kernel": lambda **_: Kernel(),
    "init_mxfp4_linear_kernel": lambda **_: Kernel(),
    "init_mxfp8_linear_kernel": lambda **_: Kernel(),
    "init_mxfp6_linear_kernel": lambda *_, **__: Kernel(),
    "init_wfp8_a16_linear_kernel": lambda **_: Kernel(),
    "choose_mp_linear_kernel": lambda _: Kernel,
    "verify_marlin_supported": lambda **_: None,
    "select_fp8_moe_backend": lambda **_: (Fp8MoeBackend.TRITON, Kernel),
    "select_int8_moe_backend": lambda **_: (Int8MoeBackend.TRITON, Kernel),
    "select_mxfp8_moe_backend": lambda **_: (Fp8MoeBackend.TRITON, Kernel),
    "select_nvfp4_moe_backend": lambda **_: (NvFp4MoeBackend.MARLIN, Kernel),
    "select_mxfp4_moe_backend": lambda *_, **__: (Mxfp4MoeBackend.MARLIN, Kernel),
    "select_deepseek_v4_mxfp4_moe_backend": lambda *_, **__: (Mxfp4MoeBackend.MARLIN, Kernel),
    "select_w4a8_moe_backend": lambda **_: (W4A8MoeBackend.HUMMING, Kernel),
    "select_wna16_moe_backend": lambda *_, **__: (WNA16MoEBackend.MARLIN, Kernel),
    "check_moe_marlin_supports_config": lambda *_, **__: True,
    "check_moe_marlin_supports_layer": lambda *_, **__: True,
}

DROPPED = {
    "AutoGPTQLinearMethod": {"qzeros"},
    "AutoGPTQMoEMethod": {"w13_qzeros", "w2_qzeros", "w13_bias", "w2_bias"},
    "_DropInputScale": {"input_scale"},
    "QuarkW8A8Int8": {"weight_zero_point"},
    "QuarkW8A8Int8MoEMethod": {
        *("w13_input_zero_point", "w2_input_zero_point"),
        *("w13_weight_zero_point", "w2_weight_zero_point"),
    },
}
"""What a method creates and drops after loading: zero points of symmetric weights, biases that no
checkpoint had, and scales of activations that stay wide (auto_gptq.py;
kernels/linear/mixed_precision/marlin.py; modelopt.py; quark_w8a8_int8.py; quark_moe.py)."""

ROUTER_BIASES = ("e_score_correction_bias", "expert_bias")
"""Kept on the router's module, but no part of its product."""


class BailingMoeConfig(PretrainedConfig):
    """Stands in for the class that comes with the checkpoint: no code of a model is run here."""

    model_type = "bailing_moe"


def main() -> None:
    AutoConfig.register("bailing_moe", BailingMoeConfig)
    stand_in_for_kernels()
    keep_names_of_heads_and_embeddings()
    cases = json.load(sys.stdin)
    inventories: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        start(f"file://{scratch}/rendezvous")
        for case in cases:
            inventories[case["name"]] = asked(case)
    print(json.dumps(inventories))


def start(rendezvous: str) -> None:
    """The one rank."""
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, rendezvous, 0, "gloo")
        initialize_model_parallel()


def asked(case: dict[str, object]) -> dict[str, object]:
    """What a rank holds, or why vLLM builds no such model."""
    try:
        config = EngineArgs(
            model=case["directory"],
            load_format="dummy",
            skip_tokenizer_init=True,
            enforce_eager=True,
            speculative_config=speculation(case["drafted"]),
            allow_deprecated_quantization=True,
        ).create_engine_config()
        with set_current_vllm_config(config):
            return inventory(config, case["tp"], case["dp"], case["ep"])
    except Exception as error:  # the case says which words of it are expected
        if not case["refused"]:
            raise
        return {"refused": f"{type(error).__name__}: {error}"}


def keep_names_of_heads_and_embeddings() -> None:
    """Each keeps the name that its model gives it, as linears do of themselves.

    `told`: whether the model hands it a quant_config, be it None.
    """
    for kind in (ParallelLMHead, VocabParallelEmbedding):
        keep_name_of(kind)


def keep_name_of(kind: type[VocabParallelEmbedding]) -> None:
    make = kind.__init__

    def named(made: VocabParallelEmbedding, *args: object, **rest: object) -> None:
        make(made, *args, **rest)
        if type(made) is kind:
            made.prefix, made.told = rest.get("prefix", ""), "quant_config" in rest

    kind.__init__ = named


def speculation(tokens: int) -> dict[str, object] | None:
    """As a user asks for the model's own draft layers."""
    return {"method": "mtp", "num_speculative_tokens": tokens} if tokens else None


def inventory(config: object, tp: int, dp: int, ep: bool) -> dict[str, object]:
    """What rank 0 of tp x dp ranks holds."""
    if getattr(config.model_config.hf_text_config, "mamba_ssm_dtype", None) is None:
        config.cache_config.mamba_ssm_cache_dtype = "auto"  # float32 is the CPU's own choice
    config.parallel_config.tensor_parallel_size = tp
    config.parallel_config.data_parallel_size = dp
    config.parallel_config.enable_expert_parallel = ep
    parallel_state._TP.world_size = tp
    parallel_state._DP.world_size = dp
    if parallel_state._EP is None:
        parallel_state._EP = parallel_state._DP
    with (
        set_default_torch_dtype(config.model_config.dtype),
        torch.device("meta"),
        as_imported(config),
    ):
        model = initialize_model(config)
        drafts, draft_heads = drafts_of(config)
    if hasattr(model, "get_language_model"):
        model = model.get_language_model()
    return {
        "linears": linears_of(model),
        "partial": partial_sums_of(model),
        "classes": {
            m.prefix: type(m).__name__ for m in model.modules() if isinstance(m, LinearBase)
        },
        "heads": [m.prefix for m in model.modules() if isinstance(m, ParallelLMHead)],
        "told": told(model),
        "draft_heads": draft_heads,
        "experts": [
            [m.ckpt_gate_proj_name, m.ckpt_up_proj_name, m.ckpt_down_proj_name]
            for m in model.modules()
            if isinstance(m, RoutedExperts)
        ],
        "schemes": schemes_of(model),
        **sums_of([model, *drafts], config),
    }


@contextmanager
def as_imported(config: VllmConfig) -> Iterator[None]:
    """Leave the classes' mappings as a fresh process has them: some add to theirs as they build."""
    get_model_cls(config.model_config)
    named = [module for name, module in sys.modules.items() if name.startswith("vllm.mod")]
    held = {
        id(mapping): (mapping, dict(mapping))
        for module in named
        for each in vars(module).values()
        if isinstance(each, type)
        if (mapping := vars(each).get("packed_modules_mapping"))
    }
    try:
        yield
    finally:
        for mapping, before in held.values():
            mapping.clear()
            mapping.update(before)


def schemes_of(model: torch.nn.Module) -> list[str]:
    """The classes that vLLM chose for quantised linears and for routed experts."""
    chosen = [getattr(module, "scheme", None) for module in model.modules()]
    chosen += [m.quant_method for m in model.modules() if isinstance(m, RoutedExperts)]
    return sorted({type(one).__name__ for one in chosen if one is not None})


SHARED = ("embed_tokens", "lm_head", "head")
"""What a drafter takes over from the model (v1/spec_decode/llm_base_proposer.py)."""


def told(model: torch.nn.Module) -> list[str]:
    """The names under which heads and embeddings ask a quantisation."""
    made = (m for m in model.modules() if isinstance(m, VocabParallelEmbedding))
    return sorted(each.prefix for each in made if each.told)


def drafts_of(config: VllmConfig) -> tuple[list[torch.nn.Module], list[str]]:
    """The modules of the draft model that are its own, and the others' names as of `told`."""
    if config.speculative_config is None:
        return [], []
    draft = initialize_model(config, model_config=config.speculative_config.draft_model_config)
    asked = told(draft)
    for module in list(draft.modules()):
        for name in SHARED:
            if isinstance(getattr(module, name, None), torch.nn.Module):
                delattr(module, name)
    return [draft], asked


def stand_in_for_kernels() -> None:
    """Kernels are chosen when a linear is built and run in a forward: none is run here."""
    ExpertMapManager.get_compressed_map_string = lambda _: "for the log"  # there is nothing to read
    for name in METHODS:
        module = import_module(f"{QUANTIZATION}.{name}")
        for choice, stand_in in CHOICES.items():
            if hasattr(module, choice):
                setattr(module, choice, stand_in)
    import_module(f"{QUANTIZATION}.inc.schemes.inc_wna16_scheme").current_platform = Cuda
    import_module(f"{ORACLE}.w4a8_int8").current_platform = Cuda
    linear = import_module(f"{QUANTIZATION}.inc.schemes.inc_wna16_linear")
    linear.check_marlin_supported = lambda *_, **__: True
    quark = import_module(f"{QUANTIZATION}.quark.quark")
    quark.QuarkConfig._check_scheme_supported = lambda *_, **__: True
    config = import_module(f"{QUANTIZATION}.compressed_tensors.compressed_tensors")
    config.CompressedTensorsConfig._check_scheme_supported = staticmethod(lambda *_, **__: True)
    choose = current_platform.get_attn_backend_cls

    def dense(*args: object, attn_selector_config: object, **kwargs: object) -> str:
        config = attn_selector_config._replace(use_sparse=False)
        return choose(*args, attn_selector_config=config, **kwargs)

    type(current_platform).get_attn_backend_cls = staticmethod(dense)


def linears_of(model: torch.nn.Module) -> dict[str, object]:
    return {
        module.prefix: {
            "prefix": module.prefix,
            "tp_replicated": module.tp_size == 1 or isinstance(module, ReplicatedLinear),
            "tensors": sorted(
                [key, list(p.shape), str(p.dtype).removeprefix("torch."), list(p.stride())]
                for key, p in kept(module)
                if key not in ROUTER_BIASES
            ),
        }
        for module in model.modules()
        if isinstance(module, LinearBase)
    }


def partial_sums_of(model: torch.nn.Module) -> list[str]:
    """The linears of which each tensor-parallel rank leaves a partial sum to what follows."""
    return [
        module.prefix
        for module in model.modules()
        if isinstance(module, RowParallelLinear)
        and module.tp_size > 1
        and not module.reduce_results
    ]


def kept(module: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters that a module still has after loading."""
    method = getattr(module, "quant_method", None)
    scheme = getattr(module, "scheme", None)
    inner = getattr(getattr(method, "scheme", None), "linear_method", None)
    kinds = (method, getattr(method, "fmt", None), scheme, inner)
    dropped = set().union(*(DROPPED.get(type(kind).__name__, set()) for kind in kinds))
    if type(scheme).__name__ == "QuarkW8A8Int8" and scheme.input_symmetric:
        dropped.add("input_zero_point")
    return [
        (name, p)
        for name, p in module.named_parameters(recurse=False)
        if name not in dropped and name not in CACHE_SCALES
    ]


def sums_of(models: list[torch.nn.Module], config: object) -> dict[str, int]:
    modules = [module for model in models for module in model.modules()]
    parameters = {id(p): p for module in modules for name, p in kept(module)}.values()
    turning = [m.weight for m in modules if type(m).__name__ == "HadamardTransform"]
    shared = {id(tensor): tensor for weight in turning for tensor in weight.local_tensors}.values()
    specs = [
        layer.get_kv_cache_spec(config)
        for layer in config.compilation_config.static_forward_context.values()
        if hasattr(layer, "get_kv_cache_spec")
    ]
    states = [spec for spec in specs if isinstance(spec, MambaSpec)]
    caches = [spec for spec in specs if not isinstance(spec, MambaSpec)]
    return {
        "total_bytes": sum(p.numel() * p.element_size() for p in (*parameters, *shared)),
        "kv_bytes_per_token": sum(s.page_size_bytes // s.block_size for s in caches),
        "state_bytes": sum(
            math.prod(shape) * dtype.itemsize
            for spec in states
            for shape, dtype in zip(spec.shapes, spec.dtypes, strict=True)
        ),
        "engine_tokens": engine_tokens(config, bool(states)),
        "ascend_tokens": ascend_tokens(config) if states else None,
        "longest": config.model_config.max_model_len,
    }


class Cuda:
    """Stands in for a platform with the kernels that vLLM's CPU backend has not."""

    is_cuda, is_cpu, is_xpu, is_rocm = (staticmethod(lambda is_it=i: is_it) for i in (1, 0, 0, 0))


class Attention:
    """Stands in for the backend of a GPU, whose blocks are multiples of sixteen tokens."""

    @staticmethod
    def get_supported_kernel_block_sizes() -> list[MultipleOf]:
        """As FlashAttention's and FlashInfer's smallest."""
        return [MultipleOf(16)]

    @staticmethod
    def customize_spec(spec: FullAttentionSpec) -> FullAttentionSpec:
        """It packs nothing."""
        return spec


def engine_tokens(config: VllmConfig, states: bool) -> dict[int, int]:
    """What vLLM would log of `CACHE_BYTES` on each rank of a GPU, by the number of stages.

    With prefix caching, and with asynchronous scheduling, both of them its defaults.
    """
    latent = config.model_config.use_mla
    layers = config.compilation_config.static_forward_context.values()
    eight = any(getattr(layer, "kv_cache_dtype", "auto").startswith("fp8") for layer in layers)
    sparse = hasattr(config.model_config.hf_text_config, "index_topk")
    # Hopper's: test_truth_blocks.py
    config.cache_config.block_size = 64 if sparse or (latent and eight) else 16
    config.cache_config.enable_prefix_caching = True
    config.cache_config.kv_cache_layout = "LBHNC"  # all pages are of one size: it has no say
    config.scheduler_config.async_scheduling = True
    config.scheduler_config.max_num_batched_tokens = STEP_TOKENS
    if states:
        config.cache_config.mamba_cache_mode = "align"
        platform = type(current_platform)
        with patch.object(platform, "_find_non_ssm_backends", lambda *_: [Attention]):
            current_platform._align_hybrid_block_size(config, Attention)
    return tokens_of(config, cache_specs(config))


def ascend_tokens(config: VllmConfig) -> dict[int, int] | None:
    """The same on an NPU, in the pages of vllm-ascend; None where its server ends."""
    return tokens_of(config, padded(cache_specs(config))) if aligned(config) else None


def cache_specs(config: VllmConfig) -> dict[str, object]:
    """What each layer keeps, in blocks as the configuration has them."""
    blocks = patch.object(
        CPUAttentionBackend,
        "get_supported_kernel_block_sizes",
        staticmethod(lambda *_: Attention.get_supported_kernel_block_sizes()),
    )
    with blocks:
        return {
            name: layer.get_kv_cache_spec(config)
            for name, layer in config.compilation_config.static_forward_context.items()
            if hasattr(layer, "get_kv_cache_spec")
        }


def tokens_of(config: VllmConfig, specs: dict[str, object]) -> dict[int, int]:
    """What vLLM would log, by the number of stages."""
    stages = (1,) if config.speculative_config is not None else (1, 2)
    split = {pp: parts_of(specs, pp) for pp in stages}
    return {pp: staged_tokens(config, parts) for pp, parts in split.items() if all(parts)}


def parts_of(specs: dict[str, object], pp: int) -> list[dict[str, object]]:
    """The caches of each of `pp` stages. LongCat's layers have two, with a number of their own."""
    layers = {name: int(next(filter(str.isdigit, name.split(".")))) for name in specs}
    spans = [range(*get_pp_indices(max(layers.values()) + 1, stage, pp)) for stage in range(pp)]
    return [{name: specs[name] for name in specs if layers[name] in span} for span in spans]


def staged_tokens(config: VllmConfig, parts: list[dict[str, object]]) -> int:
    """The tokens of an engine of these stages. The model runner is the one of a GPU."""
    config.parallel_config.pipeline_parallel_size = len(parts)
    with patch.object(VllmConfig, "use_v2_model_runner", property(lambda _: True)):
        held, *_ = get_kv_cache_configs(config, parts, [CACHE_BYTES] * len(parts))
        tokens, _ = get_kv_cache_capacity(config, held)
    config.parallel_config.pipeline_parallel_size = 1
    return int(tokens)


if __name__ == "__main__":
    main()
