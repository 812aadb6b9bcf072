"""The profile of a device, by its name or by the file that describes it."""

from __future__ import annotations

import os

from vllm_layershard.estimate.devices.bundled import bundled_profile, unknown_hardware
from vllm_layershard.estimate.hardware import Hardware


def looks_like_a_file(text: str) -> bool:
    """Whether `--hardware` means a file rather than a name."""
    return text.lower().endswith(".json") or os.sep in text


def profile(name: str) -> Hardware:
    """The bundled profile of a device, in any case, or the one in a file of that name.

    Raises:
        HardwareError: none of that name; lists the known ones. Or a file that cannot be used.
    """
    found = bundled_profile(name)
    if found is not None:
        return found
    if looks_like_a_file(name):
        from vllm_layershard.estimate.devices.profile_file import read_profile  # few have a file

        return read_profile(name)
    raise unknown_hardware(name)
