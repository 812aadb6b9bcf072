"""Former: the tensors that modules have let go of, and whether anybody keeps their memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from vllm_layershard.errors import HostError
from vllm_layershard.runtime.tensors import held

PATIENCE_S = 5.0
"""A collective's own thread lets go of a tensor a moment after the collective has ended."""


class Former:
    """The memory of large tensors before their modules read elsewhere; watched, and not kept."""

    def __init__(self) -> None:
        self._watched: list[tuple[str, str, StorageWeakRef]] = []

    def watch(self, whose: str, before: Mapping[str, StorageWeakRef], module: nn.Module) -> None:
        """Of the memory that was the module's `before`, watch what is its memory no more."""
        served = set(memory_of(held(module)).values())
        self._watched += [
            (whose, name, memory) for name, memory in before.items() if memory not in served
        ]

    def require_let_go(self) -> None:
        """Return when all that is watched is free.

        A kernel that keeps a tensor of its own would go on reading that one, where no weight comes.

        Raises:
            HostError: names a linear and its tensor that something keeps.
        """
        if self._kept() is not None:
            gc.collect()  # a loader may have made a cycle of it
        end = time.monotonic() + PATIENCE_S
        while (kept := self._kept()) is not None and time.monotonic() < end:
            time.sleep(0.01)
        if kept is not None:
            whose, name = kept
            raise HostError(
                f"{whose}: its quant method keeps the tensor {name!r} for a kernel of its own, "
                "which would not see the weight move; leave the linear out"
            )

    def _kept(self) -> tuple[str, str] | None:
        self._watched = [entry for entry in self._watched if not entry[2].expired()]
        return self._watched[0][:2] if self._watched else None


def memory_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, StorageWeakRef]:
    """The memory behind tensors, by name. It keeps none of them."""
    return {name: StorageWeakRef(tensor.untyped_storage()) for name, tensor in tensors.items()}
