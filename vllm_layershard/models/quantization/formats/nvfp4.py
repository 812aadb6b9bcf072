"""Nvfp4: four-bit floats, a float8 scale for sixteen of them, and one float32 scale for all."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import (
    bias_of,
    check_groups,
    tensor,
)
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec


class Nvfp4(NamedTuple):
    """`weight`, `total` and `inputs` are what two packers call the same tensors.

    Source: vLLM 0.32, quantization/modelopt.py, `KNvfp4Static`, `KNvfp4Dynamic` and
    `ModelOptNvFp4FusedMoE`; compressed_tensors w4a4_nvfp4, of linears and of experts.
    """

    name: str
    group: int
    weight: str
    total: str
    inputs: str
    weight_only: bool

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """Two elements a byte, the groups' scales, one scale for each part of a fused linear.

        Raises:
            PlanError: a group would be split over two ranks.
        """
        check_groups(prefix, shape.inner, self.group)
        parts = (len(shape.outs),)
        return (
            tensor(self.weight, (shape.rows, shape.inner // 2), "uint8"),
            tensor("weight_scale", (shape.rows, shape.inner // self.group), "float8_e4m3fn"),
            tensor(self.total, parts, "float32"),
            *(() if self.weight_only else (tensor(self.inputs, parts, "float32"),)),
            *bias_of(shape, dtype),
        )

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """Stacked; the activation's scales are there also where they are not used.

        With flashinfer's kernels a rank stores those of all experts: 12 bytes for each more.

        Raises:
            PlanError: a group would be split over two ranks.
        """
        check_groups(prefix, hidden, self.group)
        check_groups(prefix, intermediate, self.group)
        rows = 2 * intermediate
        return (
            tensor(f"w13_{self.weight}", (count, rows, hidden // 2), "uint8"),
            tensor(f"w2_{self.weight}", (count, hidden, intermediate // 2), "uint8"),
            tensor("w13_weight_scale", (count, rows, hidden // self.group), "float8_e4m3fn"),
            tensor("w2_weight_scale", (count, hidden, intermediate // self.group), "float8_e4m3fn"),
            tensor(f"w13_{self.total}", (count, 2), "float32"),
            tensor(f"w2_{self.total}", (count,), "float32"),
            tensor(f"w13_{self.inputs}", (count, 2), "float32"),
            tensor(f"w2_{self.inputs}", (count,), "float32"),
        )

    @property
    def precision(self) -> Precision:
        """At the eight-bit rate, the lowest that profiles state: an upper bound of the time."""
        return "bf16" if self.weight_only else "fp8"
