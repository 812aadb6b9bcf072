"""Scaled: eight-bit weights, float or integer, with one float32 scale a tensor or a row."""

from __future__ import annotations

from typing import Literal, NamedTuple

from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import (
    Biases,
    bias_of,
    expert_biases,
    tensor,
)
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec


class Scaled(NamedTuple):
    """`by_row`: a scale for each output row, else one for each part of a fused linear.

    `static`: activations have scales too, which the checkpoint stores. `column`: scales of rows
    are a column. `routed`: how experts are, where that is otherwise. `once`: all parts of a fused
    linear share the scale of a static activation, `shifted`: and it has a zero point.
    `biases`: the dtype of those of experts.
    `joined`: gate and up of an expert with a bias share their scale: only gpt-oss has such experts.

    Source: vLLM 0.32, quantization/fp8.py, `Fp8LinearMethod` and `Fp8MoEMethod`; modelopt.py,
    `KFp8StaticTensor` and `ModelOptFp8MoEMethod`; compressed_tensors/schemes and
    compressed_tensors_moe, w8a8_fp8 and w8a8_int8; quark/schemes/quark_w8a8_int8.py.
    """

    name: str
    dtype: Literal["float8_e4m3fn", "int8"]
    by_row: bool
    static: bool
    column: bool = True
    routed: Scaled | None = None
    once: bool = False
    shifted: bool = False
    joined: bool = False
    biases: Biases = "model"

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """The weight, its scales, the activation's, and the bias if there is one."""
        parts = len(shape.outs)
        rows = (shape.rows, 1) if self.column else (shape.rows,)
        scale = rows if self.by_row else (parts,)
        return (
            tensor("weight", (shape.rows, shape.inner), self.dtype),
            tensor("weight_scale", scale, "float32"),
            *self._inputs(1 if self.once else parts),
            *bias_of(shape, dtype),
        )

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """The stacked weights and scales, and one scale an expert for static activations."""
        if self.routed is not None:
            return self.routed.experts(prefix, count, hidden, intermediate, bias, dtype)
        rows = 2 * intermediate
        names = ("w13", "w2")
        by_row, by_tensor = (
            ((count, rows, 1), (count, hidden, 1)),
            ((count, 1 if bias and self.joined else 2), (count,)),
        )
        scales = zip(names, by_row if self.by_row else by_tensor, strict=True)
        return (
            tensor("w13_weight", (count, rows, hidden), self.dtype),
            tensor("w2_weight", (count, hidden, intermediate), self.dtype),
            *(tensor(f"{name}_weight_scale", scale, "float32") for name, scale in scales),
            *(tensor(f"{n}_input_scale", (count,), "float32") for n in names if self.static),
            *expert_biases(count, hidden, intermediate, bias, dtype, self.biases),
        )

    def _inputs(self, scales: int) -> tuple[TensorSpec, ...]:
        if not self.static:
            return ()
        scale = tensor("input_scale", (scales,), "float32")
        return (scale, tensor("input_zero_point", (1,), "int8")) if self.shifted else (scale,)

    @property
    def precision(self) -> Precision:
        """Products of eight-bit weights run at the low-bit rate."""
        return "fp8"
