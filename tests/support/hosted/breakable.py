"""A forward in vLLM's breakable graphs, on the device that captures without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from unittest.mock import patch

import torch
from vllm.compilation.breakable_cudagraph import BreakableCUDAGraphCapture
from vllm.config import CUDAGraphMode
from vllm.forward_context import override_forward_context

from capturing import Graph
from one_gpu.copies import OneOfTwo

REPLAYS = 3


@torch.inference_mode()
def replayed(
    stack: OneOfTwo,
    mode: str,
    x: torch.Tensor,
    forward: Callable[[], torch.Tensor],
    expected: Callable[[], torch.Tensor],
) -> dict[str, list[str] | list[bool]]:
    """What a capture of `forward` did, and of each replay whether its result is `expected`.

    Before each replay `x` and the weights change in place, and the slots are poisoned.
    """
    right = []
    context = SimpleNamespace(cudagraph_runtime_mode=CUDAGraphMode[mode])
    with override_forward_context(context), patch.object(torch.cuda, "CUDAGraph", Graph):
        with BreakableCUDAGraphCapture() as capture:
            said = forward()
        log = list(Graph.log)
        for seed in range(REPLAYS):
            x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
            stack.series.slots.poison()
            stack.change_weights()
            capture.replay()
            right.append(torch.equal(said, expected()))
    return {"log": log, "right": right}
