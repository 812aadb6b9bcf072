"""A layer and its tensors belong to one LayerSharding of a process at most.

Two shardings would each move their own bytes into one weight, and neither could know of the other.
All is kept weakly: what is gone may be made anew.
"""

from __future__ import annotations

from weakref import WeakSet, WeakValueDictionary

import torch
from torch import nn

from vllm_layershard.errors import PlanError
from vllm_layershard.runtime.tensors import held

_layers: WeakSet[nn.Module] = WeakSet()
_tensors: WeakValueDictionary[int, torch.Tensor] = WeakValueDictionary()
"""The tensors that layers came with, by id. A released one lives on only if another has it, too."""


def check_unclaimed(layer: nn.Module, whose: str) -> None:
    """Return if neither the layer nor a tensor that it holds itself belongs to a sharding.

    Raises:
        PlanError: one does.
    """
    if layer in _layers:
        raise PlanError(f"{whose} is registered already")
    if any(_tensors.get(id(tensor)) is tensor for tensor in held(layer).values()):
        raise PlanError(
            f"{whose} shares a tensor with a layer that is registered already, and both cannot own "
            "it; register neither"
        )


def claim(layer: nn.Module) -> None:
    """Take a layer with the tensors that it holds itself."""
    _layers.add(layer)
    _tensors.update({id(tensor): tensor for tensor in held(layer).values()})
