"""AscendInt4: routed experts in four-bit integers as vllm-ascend holds them."""

from __future__ import annotations

from typing import Final, NamedTuple

from vllm_layershard.errors import ModelError
from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import (
    check_packing,
    grouped_matrices,
    tensor,
)
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec

_PACKED: Final = 8
"""Weights in an int32."""


class AscendInt4(NamedTuple):
    """Groups of `group` columns, each with a scale, and with an offset of zero beside it.

    Source: vllm-ascend 182b75e, quantization/methods/w4a16.py, `AscendW4A16FusedMoEMethod`.
    """

    name: str
    group: int = 32

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """None of any: vllm-ascend has the class for routed experts alone."""
        raise ModelError(f"{prefix}: vllm-ascend has no linears with precision W4A16")

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """Stacked packed weights, scales, shapes before packing, and offsets.

        Raises:
            PlanError: a group, or the weights of an int32, would be split over two ranks.
        """
        tensors = []
        for name, rows, inner, groups in grouped_matrices(prefix, hidden, intermediate, self.group):
            check_packing(prefix, rows, _PACKED)
            tensors += [
                tensor(f"{name}_weight_packed", (count, rows, inner // _PACKED), "int32"),
                tensor(f"{name}_weight_scale", (count, rows, groups), dtype),
                tensor(f"{name}_weight_shape", (count, 2), "int32"),
                tensor(f"{name}_weight_offset", (count, rows, groups), dtype),
            ]
        return tuple(tensors)

    @property
    def precision(self) -> Precision:
        """Products are computed in the model's dtype."""
        return "bf16"
