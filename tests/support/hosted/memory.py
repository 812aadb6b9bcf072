"""Allocated: the bytes of tensor memory that this process holds, and the most that it ever held."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hosted.engines import load


class Allocated(TorchDispatchMode):
    """While entered, every storage that an op allocates is counted until the last owner is gone.

    Files mapped into memory are no allocation, nor are views and meta tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_bytes = 0
        self.peak_bytes = 0
        self._lock = threading.Lock()  # a collective's own threads let go of tensors, too
        self._counted: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_address(value) for value in tree_leaves((args, kwargs))}
        for value in tree_leaves(result):
            address = _address(value)
            if address and address not in given and address not in self._counted:
                self._count(address, value.untyped_storage())
        return result

    def _count(self, address: int, storage: torch.UntypedStorage) -> None:
        with self._lock:
            self._counted[address] = storage.nbytes()
            self.now_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.now_bytes)
        weakref.finalize(storage, self._forget, address)

    def _forget(self, address: int) -> None:
        with self._lock:
            self.now_bytes -= self._counted.pop(address)


def loaded_model(
    config: Any, between: Callable[[torch.nn.Module], None]
) -> tuple[torch.nn.Module, Allocated]:
    """This rank's model, and what was allocated while it was loaded.

    `between` is called with the model before its weights are loaded.
    """
    from vllm_layershard.runtime.loading import LoadingSeries

    adopt = LoadingSeries.adopt

    def adopt_and_settle(self: LoadingSeries, *args: Any) -> None:
        """gloo's threads let go of what a finished broadcast has filled a moment later."""
        adopt(self, *args)
        time.sleep(0.02)

    LoadingSeries.adopt = adopt_and_settle  # type: ignore[method-assign]
    allocated = Allocated()
    with allocated:
        model = load(config, between)
        gc.collect()
        time.sleep(0.1)
    return model, allocated


def _address(value: object) -> int:
    """Of a tensor's memory; 0 where there is none."""
    real = isinstance(value, torch.Tensor) and value.device.type != "meta"
    return value.untyped_storage().data_ptr() if real else 0
