"""Name: what is looked up in vLLM by its name and not replaced; one that is gone is an error.

Note [A name that is gone]
`getattr(config, name, False)` takes a field that a later vLLM has renamed for one that is off, and
serves what it was to refuse. So each name says from which release on vLLM has it. Where it is
missing from such a release, or from one that is not known, it is an error that names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import vllm
from packaging.version import InvalidVersion, Version

from vllm_layershard.errors import HostError
from vllm_layershard.hosts.patch import lacking

_OLDEST: Final = "0.29"
_NEWEST: Final = "0.33"
"""The releases of vLLM that are served."""


@dataclass(frozen=True, slots=True)
class Name:
    """The dotted name of a symbol or a field of vLLM's, and the first served release with it."""

    symbol: str
    first: str = _OLDEST

    def of(self, owner: Any, absent: Any = None) -> Any:
        """What an object of vLLM's has under it; `absent` in a release from before the first.

        Raises:
            HostError: it has none.
        """
        found = getattr(owner, self.symbol.rpartition(".")[2], _NOTHING)
        if found is not _NOTHING:
            return found
        if not self._is_yet_to_come():
            raise self.gone()
        return absent

    def imported(self) -> Any:
        """The symbol, of its module.

        Raises:
            HostError: there is no such module, or none such in it.
        """
        try:
            return self.of(import_module(self.symbol.rpartition(".")[0]))
        except ImportError:
            raise self.gone() from None

    def gone(self) -> HostError:
        """What is raised where it is missing."""
        return lacking("vllm", self.symbol, f"{self.first} to {_NEWEST}")

    def _is_yet_to_come(self) -> bool:
        try:
            return Version(_OLDEST) <= Version(vllm.__version__) < Version(self.first)
        except InvalidVersion:
            return False


_NOTHING: Final = object()

ENABLE_FAULT_TOLERANCE = Name("vllm.config.ParallelConfig.enable_fault_tolerance")
GROUPS_TIMEOUT = Name("vllm.config.ParallelConfig.distributed_timeout_seconds")
CPU_GROUPS_TIMEOUT = Name("vllm.config.ParallelConfig.cpu_distributed_timeout_seconds")
ENABLE_HC_SP = Name("vllm.config.ParallelConfig.enable_hc_sp", first="0.32")
MEGA_MOE_BACKENDS = Name("vllm.config.kernel.MEGA_MOE_BACKENDS")
SLEEP_MODE_BACKEND = Name("vllm.config.ModelConfig.sleep_mode_backend")
ENABLE_CUMEM_ALLOCATOR = Name("vllm.config.ModelConfig.enable_cumem_allocator")
IS_SUBMODEL_CONFIG = Name("vllm.config.ModelConfig.is_submodel_config", first="0.31")
SWA_BOUNDED_REPLAY = Name("vllm.config.CacheConfig.swa_bounded_replay", first="0.31")
KV_SHARING_FAST_PREFILL = Name("vllm.config.CacheConfig.kv_sharing_fast_prefill")
LORA_DUAL_STREAM = Name("vllm.envs.VLLM_LORA_ENABLE_DUAL_STREAM")
BREAK_DURING_CAPTURE = Name("vllm.compilation.breakable_cudagraph.eager_break_during_capture")
USES_META_DEVICE = Name(
    "vllm.model_executor.layers.quantization.base_config.QuantizeMethodBase.uses_meta_device"
)
MOE_RUNNER = Name("vllm.model_executor.layers.fused_moe.runner.moe_runner.MoERunner")
SHARED_EXPERTS = Name(f"{MOE_RUNNER.symbol}._shared_experts")
MAMBA_BASE = Name("vllm.model_executor.layers.mamba.abstract.MambaBase")
SUPPORTS_MULTIMODAL = Name("vllm.model_executor.models.interfaces.supports_multimodal")
GET_LANGUAGE_MODEL = Name(
    "vllm.model_executor.models.interfaces.SupportsMultiModal.get_language_model"
)
DCP_LINEAR = Name("vllm.model_executor.layers.linear.DCPGroupColumnParallelLinear")
QREP_ACTIVE = Name(f"{DCP_LINEAR.symbol}.qrep_active")
REDUCE_RESULTS = Name("vllm.model_executor.layers.linear.RowParallelLinear.reduce_results")
REQUIRES_UNQUANTIZED_INPUT = Name(
    "vllm.model_executor.layers.linear.LinearBase.requires_unquantized_input", first="0.30"
)
"""All that is looked up. Read in vLLM 0.29 to 0.33."""
