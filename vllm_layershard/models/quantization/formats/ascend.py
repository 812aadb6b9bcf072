"""Ascend: eight-bit weights as vllm-ascend holds them, with static or dynamic activations."""

from __future__ import annotations

from typing import Literal, NamedTuple

from vllm_layershard.errors import ModelError
from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import bias_of, expert_matrices, tensor
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec


class Ascend(NamedTuple):
    """`scheme`: vllm-ascend's name of the class; W8A8 has static activations, the others dynamic.

    `rescaled`: the scale of a static product is computed from two scales in the model's dtype, as
    of compressed-tensors; else the checkpoint stores it. Counted is what lies in memory after
    loading, without the copies of scales that fused MC2 keeps, which is off by default. NZ tiles of
    16 x 32 pad no size that is a multiple of 32.
    Source: vllm-ascend 182b75e, quantization/methods/w8a8_static.py, w8a8_dynamic.py and
    w8a8fp8_dynamic.py; envs.py, `VLLM_ASCEND_ENABLE_FUSED_MC2`.
    """

    scheme: Literal["W8A8", "W8A8_DYNAMIC", "W8A8FP8_DYNAMIC"]
    name: str = "ascend_w8a8"
    rescaled: bool = False

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """The weight, its scales and offsets, and what a static activation needs."""
        rows, inner = shape.rows, shape.inner
        scales: tuple[TensorSpec, ...] = ()
        if self.scheme == "W8A8_DYNAMIC":
            scales = (tensor("weight_scale_fp32", (rows,), "float32"),)
        elif self.scheme == "W8A8":
            stored = "float32" if dtype == "bfloat16" else "int64"
            scales = (
                tensor("input_scale", (1,), dtype),
                tensor("input_offset", (1,), "int8"),
                tensor("quant_bias", (rows,), "int32"),
                tensor("deq_scale", (rows,), dtype if self.rescaled else stored),
                tensor("aclnn_input_scale", (inner,), dtype),
                tensor("aclnn_input_scale_reciprocal", (inner,), dtype),
                tensor("aclnn_input_offset", (inner,), dtype),
            )
        return (
            tensor("weight", (rows, inner), self._weight),
            tensor("weight_scale", (rows,), self._scale(dtype)),
            tensor("weight_offset", (rows,), dtype),
            *scales,
            *bias_of(shape, dtype),
        )

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """The stacked weights, scales and offsets, and gate's and up's scales in float32 too.

        Raises:
            ModelError: static activations, which vllm-ascend does not have for experts.
        """
        if self.scheme == "W8A8":
            raise ModelError(f"{prefix}: vllm-ascend has no experts with precision W8A8")
        tensors = []
        for name, rows, inner in expert_matrices(hidden, intermediate):
            tensors += [
                tensor(f"{name}_weight", (count, rows, inner), self._weight),
                tensor(f"{name}_weight_scale", (count, rows), self._scale(dtype)),
                tensor(f"{name}_weight_offset", (count, rows), dtype),
            ]
        if self.scheme == "W8A8_DYNAMIC":  # a cast to the same dtype makes no copy
            tensors.append(tensor("w13_weight_scale_fp32", (count, 2 * intermediate), "float32"))
        return tuple(tensors)

    @property
    def precision(self) -> Precision:
        """Products of eight-bit weights run at the low-bit rate."""
        return "fp8"

    @property
    def _weight(self) -> str:
        return "float8_e4m3fn" if self.scheme == "W8A8FP8_DYNAMIC" else "int8"

    def _scale(self, dtype: str) -> str:
        return "float32" if self.scheme == "W8A8FP8_DYNAMIC" else dtype
