"""SlotPool: the fixed memory into which the weights of other ranks' layers arrive."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_layershard.runtime.tensors import empty_like, flat, storage_bytes


class SlotPool:
    """`num_slots` copies of one layer's large tensors. Addresses never change after creation."""

    def __init__(
        self, num_slots: int, template: Sequence[torch.Tensor], device: torch.device
    ) -> None:
        self.tensors = tuple(empty_like(template, device) for _ in range(num_slots))

    def poison(self) -> None:
        """Overwrite every slot with bytes that are NaN in any floating dtype; for tests."""
        for tensor in (t for slot in self.tensors for t in slot):
            flat(tensor).view(torch.uint8).fill_(0xFF)

    def nbytes(self) -> int:
        """Bytes really allocated."""
        return storage_bytes(t for slot in self.tensors for t in slot)
