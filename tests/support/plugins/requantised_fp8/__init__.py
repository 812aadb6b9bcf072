"""requantised_fp8: fp8 in blocks on any CPU, requantised as vLLM does for DeepGEMM.

On Hopper and Blackwell vLLM makes the scales of such a checkpoint powers of two, by default, and
quantises the weight anew (0.32: kernels/linear/scaled_mm/deep_gemm.py). Both come from the weight.
vLLM's own function does so here. Its CPU kernels want AMX; the product here is torch's.
"""

from __future__ import annotations


def register() -> None:
    """Make the kernel vLLM's first choice on the CPU. Called in every process; re-entrant."""
    from vllm.model_executor.kernels import linear
    from vllm.platforms import PlatformEnum

    from requantised_fp8.kernel import RequantisedFp8Kernel

    kernels = linear._POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CPU]
    if RequantisedFp8Kernel not in kernels:
        kernels.insert(0, RequantisedFp8Kernel)
