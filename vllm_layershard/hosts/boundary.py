"""The boundary of a decoder layer: every rank passes it in every forward; movements start there."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError
from vllm_layershard.runtime import ops

_ACTIVATION = "hidden_states"
"""The argument of a decoder layer's forward that all its compute depends on."""


def boundary_of(path: str) -> str:
    """The decoder layer's path in the model: up to the first index in the linear's."""
    parts = path.split(".")
    index = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: index + 1])


def check_boundary(layer: nn.Module) -> None:
    """Refuse a decoder layer whose activation is not known.

    Raises:
        HostError: names its class.
    """
    if _ACTIVATION not in inspect.signature(layer.forward).parameters:
        raise HostError(
            f"{KEY}: {type(layer).__name__}.forward takes no {_ACTIVATION}, so its boundary is not "
            "known; this architecture cannot be sharded yet"
        )


def install_boundary(layer: nn.Module, key: str) -> None:
    """Call `layershard::reach` on the activation just before the decoder layer runs."""
    index = list(inspect.signature(layer.forward).parameters).index(_ACTIVATION)

    def reach(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = kwargs[_ACTIVATION] if _ACTIVATION in kwargs else args[index]
        ops.reach(x, key)

    layer.register_forward_pre_hook(reach, with_kwargs=True)


def first_tensor(*given: Any) -> torch.Tensor:
    """The first tensor of what a module is given."""
    return next(x for x in given if isinstance(x, torch.Tensor))
