"""CudaExports: weights in a GPU's memory, by CUDA IPC or, in expandable segments, by VMM handles.

Beside what ipc.py says, read in these files of torch near 2.13 and not run:

- c10/cuda/CUDACachingAllocator.cpp: memory of cudaMalloc goes by cudaIpcGetMemHandle; of an
  expandable segment by file descriptors of the owner's, which the reader fetches with pidfd_getfd,
  so that it must be allowed to trace the owner. cudaMallocAsync and the pluggable allocator of a
  process (torch/csrc/cuda/CUDAPluggableAllocator.cpp) refuse. A pluggable allocator of a mere pool
  (vLLM's sleep mode) is noticed only when the driver will not name its memory.
- The same: between tensors of one device `copy_` is cudaMemcpyAsync, if both are contiguous and of
  one dtype, as flat lines of uint8 are. It is the driver that gives it to a copy engine.
- The CUDA Runtime API on cudaIpcOpenMemHandle: it can open handles to devices that are not visible
  in the process.
"""

from __future__ import annotations

import torch

from vllm_layershard.errors import NodeError
from vllm_layershard.runtime.peer_memory.ipc import INSTEAD, IpcExports, Shared
from vllm_layershard.runtime.ranks.group import Group


class CudaExports(IpcExports):
    """On one GPU; its peers are on the same or on others of the node."""

    def __init__(self, group: Group, torch_device: torch.device) -> None:
        backend = torch.cuda.get_allocator_backend()
        if backend != "native":
            rank = group.ranks[group.group_rank]
            raise NodeError(
                f"rank {rank}: memory of torch's {backend!r} allocator cannot be shared with other "
                "processes; use torch's own (PYTORCH_CUDA_ALLOC_CONF=backend:native), or "
                f"{INSTEAD}"
            )
        super().__init__(group, torch_device, torch.cuda)

    def _share(self, storage: torch.UntypedStorage) -> Shared:
        return Shared(*storage._share_cuda_())

    def _map(self, shared: Shared) -> torch.UntypedStorage:
        return torch.UntypedStorage._new_shared_cuda(*shared)

    def _identity(self) -> str:
        return _uuid(self._index)

    def _check_reach(self, rank: int, identity: str) -> None:
        """A device that this process does not see is left to the driver to judge, in opening."""
        if identity == self._identity():
            return
        reaches = torch.cuda.can_device_access_peer
        for index in range(torch.cuda.device_count()):
            if _uuid(index) == identity and not reaches(self._index, index):
                raise NodeError(
                    f"rank {self._rank} on {self._device} ({self._identity()}) has no peer access "
                    f"to rank {rank}'s GPU {identity}, here cuda:{index}; place the group on GPUs "
                    f"that have (nvidia-smi topo -p2p r), or {INSTEAD}"
                )


def _uuid(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)
