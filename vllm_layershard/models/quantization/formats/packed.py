"""Packed: integers of two to eight bits, several in an int32, with one scale a group of a row.

The `pack-quantized` format of compressed-tensors, as Kimi-K2.5's experts have it.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from vllm_layershard.errors import PlanError
from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import (
    bias_of,
    check_packing,
    expert_biases,
    grouped_matrices,
    groups_of,
    tensor,
)
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec

_REORDERED: Final = 256
"""Source: vLLM 0.32, compressed_tensors_moe_w4a8_fp8.py, `create_weights`."""


class Packed(NamedTuple):
    """Without activation order. `group` is None where a row has one scale.

    `symmetric`: no zero points are stored. `inputs`: what activations are quantised to, if they
    are.

    Source: vLLM 0.32, quantization/compressed_tensors/, `CompressedTensorsWNA16.create_weights`
    and `CompressedTensorsWNA16MoEMethod.create_weights`; w4a8_fp8, wNa8 and wNa4 store the same.
    """

    bits: int
    group: int | None
    symmetric: bool = True
    inputs: Literal["", "a8", "int8", "int4"] = ""

    @property
    def name(self) -> str:
        """For example `compressed_tensors_int4_g32`."""
        return (
            f"compressed_tensors_int{self.bits}_{f'g{self.group}' if self.group else 'channel'}"
            f"{f'_{self.inputs}' if self.inputs else ''}{'' if self.symmetric else '_zp'}"
        )

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """Packed weight, scales, the shape before packing, zero points, and the bias.

        Raises:
            PlanError: a group would be split over two ranks.
        """
        groups = groups_of(prefix, shape.inner, self.group)
        zeros = (-(-shape.rows * self.bits // 32), groups)
        return (
            tensor("weight_packed", (shape.rows, -(-shape.inner * self.bits // 32)), "int32"),
            tensor("weight_scale", (shape.rows, groups), dtype),
            tensor("weight_shape", (2,), "int64"),
            *(() if self.symmetric else (tensor("weight_zero_point", zeros, "int32"),)),
            *bias_of(shape, dtype),
        )

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """Stacked packed weights, scales, shapes and zero points.

        Raises:
            PlanError: a group, or the elements of an int32, would be split over two ranks, or the
                kernel of fp8 activations takes no such sizes.
        """
        if self.inputs == "a8":
            _check_sizes(prefix, hidden, intermediate)
        tensors = []
        for name, rows, inner, groups in grouped_matrices(prefix, hidden, intermediate, self.group):
            packed = (count, rows, inner * self.bits // 32)
            tensors += [
                tensor(f"{name}_weight_packed", packed, "int32"),
                tensor(f"{name}_weight_scale", (count, rows, groups), dtype),
                tensor(f"{name}_weight_shape", (count, 2), dtype),
            ]
            if not self.symmetric:
                check_packing(prefix, rows * self.bits, 32)
                zeros = (count, rows * self.bits // 32, groups)
                tensors.append(tensor(f"{name}_weight_zero_point", zeros, "int32"))
        biased = bias and self.inputs != "a8"  # `CompressedTensorsW4A8Fp8MoEMethod` has none
        return (*tensors, *expert_biases(count, hidden, intermediate, biased, dtype))

    @property
    def precision(self) -> Precision:
        """Products are computed in the model's dtype, or at the low-bit rate."""
        return "fp8" if self.inputs else "bf16"


def _check_sizes(prefix: str, hidden: int, intermediate: int) -> None:
    for what, size in (("hidden size", hidden), ("intermediate size on a rank", intermediate)):
        if size % _REORDERED:
            raise PlanError(
                f"{prefix}: the {what}, {size:,}, is not a multiple of {_REORDERED}, as vLLM 0.32 "
                "needs for routed experts in int4 with fp8 activations; use fewer ranks, or --ep"
            )
