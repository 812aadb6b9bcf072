"""Run as a script: asks vLLM's own code which form the cache of sparse MLA has on which device.

Input: the directories of a DeepSeek-V3.2 and of a GLM-5 as JSON; output: one JSON object, by
`major.minor` and by the cache dtype that is asked for: the form, or null where no backend takes it.

The modules of compiled kernels are stood in for: they are imported, and nothing of them is called.
Of FlashInfer it is said that it is there.
"""

import json
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from unittest.mock import patch

import torch
import vllm.utils.flashinfer
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention.mla_attention import (
    _canonicalize_sparse_mla_kv_cache_dtype,
)
from vllm.model_executor.models.config import DeepseekV32ForCausalLM, GlmMoeDsaForCausalLM
from vllm.platforms.interface import DeviceCapability
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype
from vllm.v1.attention.backend import AttentionBackend
from vllm.v1.attention.backends.mla import flashinfer_mla_sparse_sm90
from vllm.v1.attention.backends.mla.rocm_aiter_mla_sparse import ROCMAiterMLASparseBackend
from vllm.v1.kv_cache_interface import FullAttentionSpec, get_kv_quant_mode

ASKED = (
    *("auto", "bfloat16", "float16", "fp8", "fp8_e4m3"),
    *("fp8_ds_mla", "nvfp4_ds_mla", "nvfp4"),
)
CAPABILITIES = ((8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1))
HEADS = (64, 128, 256)
SPARSE = ("FLASH_ATTN_MLA_SPARSE", "FLASHMLA_SPARSE", "FLASHINFER_MLA_SPARSE")


def main() -> None:
    directories = json.load(sys.stdin)
    vllm.utils.flashinfer.has_flashinfer_sparse_mla_sm120 = lambda: True
    vllm.utils.flashinfer.has_nvidia_artifactory = lambda: True
    flashinfer_mla_sparse_sm90.has_flashinfer_sm90_nope_mla = lambda: True
    forms: dict[str, object] = {}
    config = configured(directories["v3.2"])
    with set_current_vllm_config(config):
        for pair in CAPABILITIES:
            capability = DeviceCapability(*pair)
            forms[f"{pair[0]}.{pair[1]}"] = {name: form(name, capability) for name in ASKED}
            with on_cuda(*pair):
                forms[f"heads {pair[0]}.{pair[1]}"] = {
                    f"{size} {name}": of_heads(name, capability, size)
                    for name in ASKED
                    for size in HEADS
                    if not name.endswith("_ds_mla")  # MLA's alone
                }
    forms["rocm"] = dict.fromkeys(ASKED) | {
        name: _canonicalize_sparse_mla_kv_cache_dtype(ROCMAiterMLASparseBackend, name)
        for name in ROCMAiterMLASparseBackend.supported_kv_cache_dtypes
    }
    config.cache_config.cache_dtype = "bfloat16"
    DeepseekV32ForCausalLM.verify_and_update_config(config)
    forms["v3.2 bfloat16"] = config.cache_config.cache_dtype
    glm = configured(directories["glm-5"])
    forms["glm auto"] = {f"{a}.{b}": glm_auto(glm, a) for a, b in CAPABILITIES}
    print(json.dumps(forms))


def configured(directory: str) -> VllmConfig:
    arguments = EngineArgs(model=directory, load_format="dummy", skip_tokenizer_init=True)
    return arguments.create_engine_config()


def takes(
    backend: type[AttentionBackend],
    asked: str,
    capability: DeviceCapability,
    size: int,
    *,
    mla: bool,
    sparse: bool,
    block: int | None = None,
) -> bool:
    """Whether it takes a decoder's cache of this dtype, in blocks of so many tokens (None: any)."""
    return not backend.validate_configuration(
        head_size=size,
        dtype=torch.bfloat16,
        kv_cache_dtype=asked,
        block_size=block,
        use_mla=mla,
        has_sink=False,
        use_sparse=sparse,
        use_mm_prefix=False,
        use_per_head_quant_scales=False,
        device_capability=capability,
        attn_type="decoder",
    )


def form(asked: str, capability: DeviceCapability) -> str | None:
    """That of the first backend which takes it, of those for sparse MLA."""
    heads, size = 128, 576
    for backend in cuda()._get_backend_priorities(True, capability, heads, asked, False, size):
        if not backend.name.startswith(SPARSE):
            continue
        try:
            kind = backend.get_class()
        except ImportError:  # FLASH_ATTN_MLA_SPARSE, which takes no eight-bit cache
            continue
        if takes(kind, asked, capability, size, mla=True, sparse=True, block=64):
            return str(_canonicalize_sparse_mla_kv_cache_dtype(kind, asked))
    return None


def of_heads(asked: str, capability: DeviceCapability, size: int) -> int | None:
    """Bytes that a head keeps of a token, with the first backend that takes such a cache."""
    for backend in cuda()._get_backend_priorities(False, capability, 32, asked, False, size):
        try:
            kind = backend.get_class()
        except ImportError:  # FLASH_ATTN, whose cache is as FlashInfer's and Triton's
            continue
        if takes(kind, asked, capability, size, mla=False, sparse=False, block=None):
            spec = FullAttentionSpec(
                block_size=16,
                num_kv_heads=1,
                head_size=size,
                dtype=kv_cache_dtype_str_to_dtype(asked, TYPES),
                kv_quant_mode=get_kv_quant_mode(asked),
            )
            return int(kind.customize_spec(spec).page_size_bytes // 16)
    return None


FLASHINFER = ("decode", "prefill", "utils")


class Absent(types.ModuleType):
    """FlashInfer, which is not here: its names are imported, and nothing of them is called."""

    def __getattr__(self, name: str) -> type:
        """A class of that name."""
        return type(name, (), {})


TYPES = types.SimpleNamespace(dtype=torch.bfloat16)


def cuda() -> types.ModuleType:
    """vLLM's platform for CUDA, which this build has and never imports."""
    for missing in ("vllm._C_stable_libtorch", "vllm._C", "vllm._moe_C"):
        sys.modules.setdefault(missing, types.ModuleType(missing))
    for missing in ("flashinfer", *(f"flashinfer.{part}" for part in FLASHINFER)):
        sys.modules.setdefault(missing, Absent(missing))
    return import_module("vllm.platforms.cuda")


def glm_auto(config: VllmConfig, major: int) -> str:
    """What `auto` is for GLM-5 once its class has seen the platform."""
    config.cache_config.cache_dtype = "auto"
    with on_cuda(major, 0):
        GlmMoeDsaForCausalLM.verify_and_update_config(config)
    return str(config.cache_config.cache_dtype)


BOUND = (
    "vllm.utils.flashinfer",
    "vllm.v1.attention.backends.fa_utils",
    "vllm.v1.attention.backends.flashinfer",
)
"""Modules with a name of their own for the platform."""


@contextmanager
def on_cuda(major: int, minor: int) -> Iterator[None]:
    capability = DeviceCapability(major, minor)
    platform = types.SimpleNamespace(
        is_cuda=lambda: True,
        is_rocm=lambda: False,
        is_xpu=lambda: False,
        fp8_dtype=lambda: torch.float8_e4m3fn,
        get_device_capability=lambda: capability,
        is_device_capability=lambda number: number == capability.to_int(),
        is_device_capability_family=lambda family: family == 10 * major,
    )
    cuda()
    bound = [import_module(name) for name in BOUND]
    with ExitStack() as stack:
        stack.enter_context(patch("vllm.platforms._current_platform", platform))
        for module in bound:
            stack.enter_context(patch.object(module, "current_platform", platform))
        yield


if __name__ == "__main__":
    main()
