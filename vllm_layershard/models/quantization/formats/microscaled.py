"""Microscaled: floats of 4, 6 or 8 bits with one eight-bit exponent for 32 of them (OCP MX)."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from vllm_layershard.errors import PlanError
from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import (
    Biases,
    bias_of,
    check_groups,
    expert_biases,
    tensor,
)
from vllm_layershard.models.quantization.formats.mxfp4 import rounded_up
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec

BLOCK: Final = 32
"""Columns with one exponent."""

_STACKED: Final = ("w13", "w2")
_LARGEST_TILE: Final = 256
"""Sizes that it divides are rounded up by no kernel."""

Rounding = Literal["none", "up", "by device"]
"""Whether the sizes of experts are rounded up: never, as those of mxfp4, or by AITER's kernels
alone, while other devices emulate."""


class Microscaled(NamedTuple):
    """`bits`: 4, two of them in a byte, 6, four in three bytes, or 8.

    `weight` is what the tensor is called.
    `low_bit`: activations are quantised, too. `biases`: the dtype of those of experts.
    `static`: activations have scales too, which the checkpoint stores. `rounding`: of experts.

    Source: vLLM 0.32, quantization/modelopt.py, `KMxfp8Static` and `ModelOptMxFp8FusedMoE`;
    compressed_tensors, w8a8_mxfp8 and w4a4_mxfp4, of linears and of experts; quark/schemes,
    quark_w4a8_mxfp4_fp8.py; quark_moe.py, `QuarkOCP_MX_MoEMethod`.
    """

    name: str
    bits: int
    weight: str = "weight"
    low_bit: bool = True
    biases: Biases = "none"
    static: bool = False
    rounding: Rounding = "none"

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """The weight, its exponents, and the bias if there is one.

        Raises:
            PlanError: a block would be split over two ranks.
        """
        return (
            *self._pair("", prefix, (shape.rows, shape.inner)),
            *((tensor("input_scale", (len(shape.outs),), "float32"),) if self.static else ()),
            *bias_of(shape, dtype),
        )

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """Stacked in the same way.

        Raises:
            PlanError: a block would be split over two ranks, or sizes depend on the device.
        """
        if self.rounding == "by device" and (
            hidden % _LARGEST_TILE or intermediate % _LARGEST_TILE
        ):
            raise PlanError(
                f"{prefix}: experts of {hidden} columns and {intermediate} rows on a rank: vLLM "
                f"0.32 rounds {self.name} up on some of AMD's devices only, which is not read; "
                f"use sizes that {_LARGEST_TILE} divides: --ep, or fewer ranks"
            )
        if self.rounding == "up":
            hidden, intermediate = rounded_up(hidden, intermediate)
        return (
            *self._pair("w13_", prefix, (count, 2 * intermediate, hidden)),
            *self._pair("w2_", prefix, (count, hidden, intermediate)),
            *(tensor(f"{n}_input_scale", (count,), "float32") for n in _STACKED if self.static),
            *expert_biases(count, hidden, intermediate, bias, dtype, self.biases),
        )

    @property
    def precision(self) -> Precision:
        """At the eight-bit rate, the lowest that profiles state: an upper bound of the time."""
        return "fp8" if self.low_bit else "bf16"

    def _pair(self, which: str, prefix: str, shape: tuple[int, ...]) -> tuple[TensorSpec, ...]:
        *stack, columns = shape
        check_groups(prefix, columns, BLOCK)
        packed = (*stack, columns * self.bits // 8)
        return (
            tensor(f"{which}{self.weight}", packed, "float8_e4m3fn" if self.bits == 8 else "uint8"),
            tensor(f"{which}weight_scale", (*stack, columns // BLOCK), "uint8"),
        )
