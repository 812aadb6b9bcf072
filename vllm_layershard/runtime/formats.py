"""Refuses tensors that a device keeps in a format of its own: their bytes are not in rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vllm_layershard.errors import HostError
from vllm_layershard.runtime.device import Device


def check_formats(device: Device, whose: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse a tensor whose format others would not read: slots and stripes are plain rows.

    Raises:
        HostError: names `whose`, the tensor and its format.
    """
    for name, tensor in tensors.items():
        private = device.private_format(tensor)
        if private is not None:
            raise HostError(
                f"{whose}: its tensor {name!r} is in the device's own format {private}, which "
                'layer sharding cannot move; set "weight_nz_mode": 0 in additional_config (older '
                "vllm-ascend: VLLM_ASCEND_ENABLE_NZ=0), or leave the linear out"
            )
