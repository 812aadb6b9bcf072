"""Refuses a device on which vLLM builds no class for a quantised model."""

from __future__ import annotations

from vllm_layershard.errors import HardwareError
from vllm_layershard.estimate import Hardware
from vllm_layershard.models import Model
from vllm_layershard.models.quantization.formats.bound import bound_of
from vllm_layershard.models.quantization.served.needs import KernelDevice


def require_kernels(model: Model, device: Hardware) -> None:
    """Compare the device, of which the model knows its cache's, with what each module needs.

    Raises:
        HardwareError: names the first module with its class, and the devices that have it.
    """
    stated = device.compute_capability
    kernels = KernelDevice(None if stated is None else stated.value, model.cache_device.rocm)
    for prefix, found in model.blueprint.formats():
        bound = bound_of(prefix, found)
        if bound is not None and not bound.needs.met_by(kernels):
            raise HardwareError(
                f"--hardware {device.name}: {prefix} is {bound.name}, for which vLLM 0.32 has "
                f"{bound.scheme}, on {bound.needs} only; give a device of that, or another model"
            )
