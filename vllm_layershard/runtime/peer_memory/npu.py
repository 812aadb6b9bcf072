"""NpuExports: weights in an NPU's memory, by ACL IPC through torch_npu.

Written against torch_npu's sources (August 2026) and CANN 8.5's documentation, and not run:

- torch_npu/utils/storage.py gives UntypedStorage `_share_npu_` and `_new_shared_npu`, which take
  and return what torch's for CUDA do. They came with torch_npu's IPC, which its own documentation
  (memory_sharing_ipc.md) promises from Ascend HDK 25.3.RC1 and CANN 8.3.RC1 on, and not on 950DT.
- torch_npu/csrc/core/npu/NPUCachingAllocator.cpp: a block goes by aclrtIpcMemGetExportKey with
  DISABLE_PID_VALIDATION, so that no list of readers (aclrtIpcMemSetImportPid) is needed, and is
  opened by aclrtIpcMemImportByKey with ENABLE_PEER_ACCESS; whoever is out of reach is told there.
- torch_npu/csrc/ipc/StorageSharing.cpp: a storage in a layout of the NPU's own (NZ) is refused. It
  does not come so far: `check_formats` refuses it before, by name.
- torch_npu/csrc/npu/NPUPluggableAllocator.cpp only warns where it cannot share.
"""

from __future__ import annotations

import torch

from vllm_layershard.errors import NodeError
from vllm_layershard.runtime.peer_memory.ipc import INSTEAD, IpcExports, Shared
from vllm_layershard.runtime.ranks.group import Group


class NpuExports(IpcExports):
    """On one NPU; its peers are on the same or on others of the node."""

    def __init__(self, group: Group, torch_device: torch.device) -> None:
        rank = group.ranks[group.group_rank]
        if not hasattr(torch.UntypedStorage, "_share_npu_"):
            raise NodeError(
                f"rank {rank}: this torch_npu cannot share device memory between processes (it has "
                "no ACL IPC); install one for CANN 8.3.RC1 and Ascend HDK 25.3.RC1 or later, or "
                f"{INSTEAD}"
            )
        accelerator = torch.npu  # type: ignore[attr-defined]
        backend = accelerator.get_allocator_backend()
        if backend != "native":
            raise NodeError(
                f"rank {rank}: memory of torch_npu's {backend!r} allocator cannot be shared with "
                f"other processes; unset it, or {INSTEAD}"
            )
        super().__init__(group, torch_device, accelerator)

    def _share(self, storage: torch.UntypedStorage) -> Shared:
        return Shared(*storage._share_npu_())  # type: ignore[attr-defined]

    def _map(self, shared: Shared) -> torch.UntypedStorage:
        return torch.UntypedStorage._new_shared_npu(*shared)  # type: ignore[attr-defined]

    def _identity(self) -> str:
        """Its number among those that this process sees: ACL has no name for it."""
        return f"npu:{self._index}"

    def _check_reach(self, rank: int, identity: str) -> None:
        """Opening asks for peer access, and says where there is none."""
