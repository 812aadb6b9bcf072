"""Stands in for torchvision where vLLM's multimodal classes are built and none of it is run.

vLLM's CPU build has no torchvision that works; the image processors only import its names.
"""

__version__ = "0.0"


class Name:
    """What is imported from torchvision: its parts are such names, too, and it does nothing."""

    def __init__(self, path):
        self._path = path

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Name(f"{self._path}.{name}")

    def __call__(self, *_, **__):
        raise AssertionError(f"{self._path} is called, and only its name stands here")


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Name(f"torchvision.{name}")
