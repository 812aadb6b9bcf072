"""Refuses tensors that do not lie in memory as plain rows, byte after byte."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vllm_layershard.errors import HostError
from vllm_layershard.runtime.device import Device


def check_formats(device: Device, whose: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse a tensor that others would not read alike: slots and stripes are plain, dense rows.

    Raises:
        HostError: names `whose`, the tensor, and its format or its gaps.
    """
    for name, tensor in tensors.items():
        private = device.private_format(tensor)
        if private is not None:
            raise HostError(
                f"{whose}: its tensor {name!r} is in the device's own format {private}, which "
                'layer sharding cannot move; set "weight_nz_mode": 0 in additional_config (older '
                "vllm-ascend: VLLM_ASCEND_ENABLE_NZ=0), or leave the linear out"
            )
        if not is_dense(tensor):
            raise HostError(
                f"{whose}: its tensor {name!r} has gaps between its rows (shape "
                f"{tuple(tensor.shape)}, stride {tensor.stride()}), which layer sharding cannot "
                "move; leave the linear out"
            )


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the tensor's elements fill one stretch of memory, in whatever order, each once."""
    filled = 1
    sizes = zip(tensor.stride(), tensor.size(), strict=True)
    for stride, size in sorted(pair for pair in sizes if pair[1] != 1):
        if stride != filled:
            return tensor.numel() == 0
        filled *= size
    return True
