"""Fp8Grid: float8 weights with one float32 scale for 128 x 128, as Model Optimizer stores them."""

from __future__ import annotations

from typing import Final, NamedTuple

from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import bias_of, check_groups, tensor
from vllm_layershard.models.quantization.formats.scaled import Scaled
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec

_SIDE: Final = 128


class Fp8Grid(NamedTuple):
    """One grid over all parts of a fused linear. Experts have one scale a matrix all the same.

    Source: vLLM 0.32, quantization/modelopt.py, `KFp8Block128`, and `ModelOptFp8Config`, whose
    class of experts is `ModelOptFp8MoEMethod` whatever the algorithm.
    """

    name: str
    routed: Scaled

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """The weight, its scales, and the bias if there is one.

        Raises:
            PlanError: columns that are no whole number of blocks, which vLLM refuses.
        """
        check_groups(prefix, shape.inner, _SIDE)
        grid = (-(-shape.rows // _SIDE), 1, shape.inner // _SIDE, 1)
        return (
            tensor("weight", (shape.rows, shape.inner), "float8_e4m3fn"),
            tensor("weight_scale", grid, "float32"),
            *bias_of(shape, dtype),
        )

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """The stacked weights, and a scale a matrix."""
        return self.routed.experts(prefix, count, hidden, intermediate, bias, dtype)

    @property
    def precision(self) -> Precision:
        """Products of float8 weights run at the low-bit rate."""
        return "fp8"
