"""Fp8Block: float8 weights with one float32 scale a block, as DeepSeek publishes them."""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from vllm_layershard.errors import PlanError
from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import (
    Biases,
    bias_of,
    expert_biases,
    tensor,
)
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec

_LEAST_REFINED = 32


class Fp8Block(NamedTuple):
    """`block` is (rows, columns) of one scale, `scale` what its tensor is called.

    `refines`: experts that ranks split within a block get smaller ones, not a refusal. `biases`:
    the dtype of those of experts.

    Source: vLLM 0.32, layers/quantization/fp8.py, `Fp8LinearMethod` and `Fp8MoEMethod`.
    """

    block: tuple[int, int]
    scale: str = "weight_scale_inv"
    refines: bool = True
    biases: Biases = "model"

    @property
    def name(self) -> str:
        """For example `fp8_block_128x128`."""
        return f"fp8_block_{self.block[0]}x{self.block[1]}"

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """The weight, its scales, and the bias if there is one."""
        self._check_blocks(prefix, shape, tp)
        weight = self._pair("weight", (shape.rows, shape.inner), self.block)
        return (*weight, *bias_of(shape, dtype))

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """The stacked weights and scales."""
        block = self._expert_block(prefix, hidden, intermediate)
        return (
            *self._pair("w13_weight", (count, 2 * intermediate, hidden), block),
            *self._pair("w2_weight", (count, hidden, intermediate), block),
            *expert_biases(count, hidden, intermediate, bias, dtype, self.biases),
        )

    @property
    def precision(self) -> Precision:
        """Products of float8 weights run at the low-bit rate."""
        return "fp8"

    def _expert_block(self, prefix: str, hidden: int, intermediate: int) -> tuple[int, int]:
        """The block of the experts' scales: refined where ranks split the checkpoint's.

        Source: vLLM 0.32, fused_moe/oracle/fp8.py, `refine_fp8_moe_block_shape`.
        """
        if intermediate % self.block[0] == 0:
            return self.block
        if not self.refines:
            raise PlanError(
                f"{prefix}: {intermediate:,} rows of each expert on a rank are not a multiple of "
                f"the fp8 block of {self.block[0]}; use --ep or fewer ranks"
            )
        refined = gcd(*self.block, intermediate, hidden)
        if refined < _LEAST_REFINED:
            raise PlanError(
                f"{prefix}: {intermediate:,} rows of each expert on a rank share no block of at "
                f"least {_LEAST_REFINED} with the fp8 block of {self.block[0]}; use --ep or fewer "
                "ranks"
            )
        return refined, refined

    def _check_blocks(self, prefix: str, shape: Shape, tp: int) -> None:
        """Refuse what vLLM does not build, or builds and has no place for each of its scales.

        Source: vLLM 0.32, quantization/utils/fp8_utils.py, `validate_fp8_block_shape`; linear.py,
        `_maybe_allow_fp8_block_shape_mismatch` and `adjust_block_scale_shard`.
        """
        odd, (rows, columns) = 0, self.block
        spread = tp if shape.split == "out" else 1
        never = next((out * spread for out in shape.outs[:-1] if out * spread % rows), 0)
        if never:
            raise PlanError(
                f"{prefix}: {never:,} rows are not a multiple of the fp8 block of {rows}, and vLLM "
                "has no place for the scales of what is merged behind them; it has to be left "
                "unquantised"
            )
        if tp > 1 and shape.split == "in" and shape.inner % columns:
            odd, unit = shape.inner, columns
        elif spread > 1:
            odd, unit = next((out for out in shape.outs if out % rows), 0), rows
        if odd:
            raise PlanError(
                f"{prefix}: {odd:,} on each of {tp} tensor-parallel ranks is not a multiple of the "
                f"fp8 block of {unit}; choose another tp"
            )

    def _pair(
        self, name: str, shape: tuple[int, ...], block: tuple[int, int]
    ) -> tuple[TensorSpec, TensorSpec]:
        """A weight, and its scales; a gate and an up projection have scales of their own."""
        *stack, rows, columns = shape
        halves = 2 if name == "w13_weight" else 1
        scale_rows = halves * -(-(rows // halves) // block[0])
        scales = (*stack, scale_rows, -(-columns // block[1]))
        return (
            tensor(name, shape, "float8_e4m3fn"),
            tensor(name.replace("weight", self.scale), scales, "float32"),
        )
