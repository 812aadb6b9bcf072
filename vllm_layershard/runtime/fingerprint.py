"""A few kilobytes of each weight, to tell whether two ranks were given the same."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch

from vllm_layershard.runtime.tensors import byte_line, bytes_of

_BLOCKS = 16
_BLOCK_BYTES = 4096


def fingerprint(tensors: Sequence[torch.Tensor]) -> int:
    """CRC-32 over 64 KiB of each dense tensor, in blocks spread evenly. Blocks until it is there.

    Quick beside reading a weight, and sure to see another checkpoint, of which nearly all differs.
    It is no check of what arrives: see FirstArrivals.
    """
    crc = 0
    for tensor in tensors:
        line = byte_line(tensor)
        if line.numel() > _BLOCKS * _BLOCK_BYTES:
            apart = (line.numel() - _BLOCK_BYTES) // (_BLOCKS - 1)
            line = line.as_strided((_BLOCKS, _BLOCK_BYTES), (apart, 1), line.storage_offset())
        crc = zlib.crc32(bytes_of(line), crc)
    return crc
