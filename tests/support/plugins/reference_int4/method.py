"""ReferenceInt4LinearMethod: creates, processes and applies the weights of one linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.model_executor.utils import set_weight_attrs


class ReferenceInt4LinearMethod(LinearMethodBase):
    def __init__(self, block: tuple[int, int]) -> None:
        self.rows, self.columns = block

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra: Any,
    ) -> None:
        out, into = sum(output_partition_sizes), input_size_per_partition
        blocks = (out // self.rows, into // self.columns)
        for name, shape, dtype in (
            ("weight_packed", (out, into // 2), torch.uint8),
            ("weight_scale", blocks, torch.float32),
            ("weight_zero_point", blocks, torch.uint8),
        ):
            parameter = nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
            layer.register_parameter(name, parameter)
            set_weight_attrs(parameter, {"output_dim": 0, "input_dim": 1} | extra)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        scale = layer.weight_scale.data.t().contiguous()
        offset = layer.weight_zero_point.data.t() * scale
        layer.weight_packed = nn.Parameter(layer.weight_packed.data.t(), requires_grad=False)
        layer.weight_scale = nn.Parameter(scale, requires_grad=False)
        del layer.weight_zero_point
        layer.register_buffer("offset", offset, persistent=False)

    def apply(
        self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        values = unpacked(layer.weight_packed).float()
        weight = values * spread(layer.weight_scale, values) - spread(layer.offset, values)
        return torch.nn.functional.linear(x, weight.to(x.dtype).t(), bias)


def unpacked(packed: torch.Tensor) -> torch.Tensor:
    """Of bytes [in / 2, out] the values 0 to 15, [in, out]."""
    return torch.stack((packed & 0xF, packed >> 4), dim=1).flatten(0, 1)


def spread(blocks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A value of each block for each of its elements."""
    for dim in (0, 1):
        blocks = blocks.repeat_interleave(like.shape[dim] // blocks.shape[dim], dim)
    return blocks
