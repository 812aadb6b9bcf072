"""Ascend: eight-bit integers as vllm-ascend holds them, with static or dynamic activations."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.errors import ModelError
from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import bias_of, expert_matrices, tensor
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec


class Ascend(NamedTuple):
    """`static`: activations are quantised with what the checkpoint stores.

    Counted is what lies in memory after loading: float32 and int64 copies of scales too. NZ tiles
    of 16 x 32 pad no size that is a multiple of 32.
    Source: vllm-ascend 5ed63ef, vllm_ascend/quantization/methods/w8a8_static.py and
    w8a8_dynamic.py.
    """

    static: bool
    name: str = "ascend_w8a8"

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """The weight, its scales and offsets, and what a static activation needs."""
        rows, inner = shape.rows, shape.inner
        scales: tuple[TensorSpec, ...] = (tensor("weight_scale_fp32", (rows,), "float32"),)
        if self.static:
            scales = (
                tensor("input_scale", (1,), dtype),
                tensor("input_offset", (1,), "int8"),
                tensor("quant_bias", (rows,), "int32"),
                tensor("deq_scale", (rows,), "float32" if dtype == "bfloat16" else "int64"),
                tensor("aclnn_input_scale", (inner,), dtype),
                tensor("aclnn_input_scale_reciprocal", (inner,), dtype),
                tensor("aclnn_input_offset", (inner,), dtype),
            )
        return (
            tensor("weight", (rows, inner), "int8"),
            tensor("weight_scale", (rows,), dtype),
            tensor("weight_offset", (rows,), dtype),
            *scales,
            *bias_of(shape, dtype),
        )

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """The stacked weights, and scales in three formats.

        Raises:
            ModelError: static activations, which vllm-ascend does not have for experts.
        """
        if self.static:
            raise ModelError(f"{prefix}: vllm-ascend has no experts with precision W8A8")
        tensors = []
        for name, rows, inner in expert_matrices(hidden, intermediate):
            tensors += [
                tensor(f"{name}_weight", (count, rows, inner), "int8"),
                tensor(f"{name}_weight_scale", (count, rows), dtype),
                tensor(f"{name}_weight_offset", (count, rows), dtype),
                tensor(f"{name}_weight_scale_fp32", (count, rows), "float32"),
                tensor(f"fused_{name.replace('13', '1')}_scale", (count, rows), "int64"),
            ]
        return tuple(tensors)

    @property
    def precision(self) -> Precision:
        """Products of eight-bit weights run at the low-bit rate."""
        return "fp8"
