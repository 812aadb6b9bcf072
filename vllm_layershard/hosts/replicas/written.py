"""Written: how much a weight loader would have written into a parameter without memory."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WRITES = (
    torch.ops.aten.copy_.default,
    torch.ops.aten.fill_.Scalar,
    torch.ops.aten.fill_.Tensor,
)


class Written(TorchDispatchMode):
    """Counts the elements of meta tensors that are written."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _WRITES and args[0].is_meta:
            self.elements += args[0].numel()
        return func(*args, **(kwargs or {}))
