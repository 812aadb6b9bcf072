"""vLLM's CUDA platform on a machine without a GPU: what its configuration decides there."""

from __future__ import annotations

import sys
import types
from typing import Any


def stand_in() -> None:
    """From now on vLLM's modules take this process's platform for an H100's.

    Its own class of the CUDA platform answers; only what would ask the driver is stated. What the
    CPU's platform has decided at import stays decided.
    """
    sys.modules["vllm._C_stable_libtorch"] = types.ModuleType("vllm._C_stable_libtorch")
    import vllm.engine.arg_utils
    import vllm.model_executor.model_loader.base_loader
    import vllm.platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class StandIn(CudaPlatformBase):
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(9, 0)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "NVIDIA H100 80GB HBM3"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return 80 << 30

        @classmethod
        def device_count(cls) -> int:
            return 8

        @classmethod
        def is_fully_connected(cls, device_ids: list[int]) -> bool:
            return True

    platform: Any = StandIn()
    vllm.platforms._current_platform = platform
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm.") and "current_platform" in vars(module):
            module.current_platform = platform
