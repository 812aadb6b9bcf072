"""Nibbles: four-bit integers as AMD's Quark packs them, with a scale and a zero point a group."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import (
    bias_of,
    grouped_matrices,
    groups_of,
    tensor,
)
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec

_IN_INT32 = 8
_IN_BYTE = 2


class Nibbles(NamedTuple):
    """`group` weights have a scale. Zero points are kept also where all are alike.

    Source: vLLM 0.32, quantization/quark/schemes/quark_w4a16_int4.py and quark_moe.py,
    `QuarkW4A16Int4MoEMethod`.
    """

    group: int

    @property
    def name(self) -> str:
        """For example `quark_int4_g128`."""
        return f"quark_int4_g{self.group}"

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """Packed along the output, which is padded to whole integers.

        Raises:
            PlanError: a group would be split over two ranks.
        """
        groups = groups_of(prefix, shape.inner, self.group)
        packed = -(-shape.rows // _IN_INT32)
        return (
            tensor("weight", (shape.inner, packed), "int32"),
            tensor("weight_zero_point", (groups, packed), "int32"),
            tensor("weight_scale", (groups, packed * _IN_INT32), dtype),
            *bias_of(shape, dtype),
        )

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """Packed along the input, two in a byte, without biases.

        Raises:
            PlanError: a group would be split over two ranks.
        """
        tensors = []
        for name, rows, inner, groups in grouped_matrices(prefix, hidden, intermediate, self.group):
            tensors += [
                tensor(f"{name}_weight", (count, rows, inner // _IN_BYTE), "uint8"),
                tensor(f"{name}_weight_scale", (count, rows, groups), dtype),
                tensor(f"{name}_weight_zero_point", (count, rows // _IN_BYTE, groups), "uint8"),
            ]
        return tuple(tensors)

    @property
    def precision(self) -> Precision:
        """Products are computed in the model's dtype."""
        return "bf16"
