"""Packed: integers of four or eight bits, several in an int32, with one scale a group of a row.

The `pack-quantized` format of compressed-tensors, as Kimi-K2.5's experts have it.
"""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import (
    bias_of,
    check_groups,
    expert_biases,
    tensor,
)
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec


class Packed(NamedTuple):
    """Symmetric, without activation order.

    Source: vLLM 0.32, quantization/compressed_tensors/, `CompressedTensorsWNA16.create_weights`
    and `CompressedTensorsWNA16MoEMethod.create_weights`.
    """

    bits: int
    group: int

    @property
    def name(self) -> str:
        """For example `compressed_tensors_int4_g32`."""
        return f"compressed_tensors_int{self.bits}_g{self.group}"

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """Packed weight, scales, the shape before packing, and the bias if there is one.

        Raises:
            PlanError: a group would be split over two ranks.
        """
        check_groups(prefix, shape.inner, self.group)
        return (
            tensor("weight_packed", (shape.rows, shape.inner * self.bits // 32), "int32"),
            tensor("weight_scale", (shape.rows, shape.inner // self.group), dtype),
            tensor("weight_shape", (2,), "int64"),
            *bias_of(shape, dtype),
        )

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """Stacked packed weights, scales and shapes.

        Raises:
            PlanError: a group would be split over two ranks.
        """
        check_groups(prefix, hidden, self.group)
        check_groups(prefix, intermediate, self.group)
        rows, pack = 2 * intermediate, 32 // self.bits
        return (
            tensor("w13_weight_packed", (count, rows, hidden // pack), "int32"),
            tensor("w2_weight_packed", (count, hidden, intermediate // pack), "int32"),
            tensor("w13_weight_scale", (count, rows, hidden // self.group), dtype),
            tensor("w2_weight_scale", (count, hidden, intermediate // self.group), dtype),
            tensor("w13_weight_shape", (count, 2), dtype),
            tensor("w2_weight_shape", (count, 2), dtype),
            *expert_biases(count, hidden, intermediate, bias, dtype),
        )

    @property
    def precision(self) -> Precision:
        """Products are computed in the model's dtype."""
        return "bf16"
