"""Stands in for torchvision where vLLM's multimodal classes are built and none of it is run.

vLLM's CPU build has no torchvision that works; the image processors only import its names.
"""

from unittest.mock import MagicMock

__version__ = "0.0"


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock()
