"""Unquantized: a checkpoint in the model's own dtype."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.method import plain_experts, plain_linear
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec


class Unquantized(NamedTuple):
    """Everything in the model's dtype."""

    name: str = "none"

    def tensors(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """The weight, and the bias if there is one."""
        return plain_linear(shape, dtype)

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """The stacked weights, and the biases if there are any."""
        return plain_experts(count, hidden, intermediate, bias, dtype)

    def precision(self, tensors: tuple[TensorSpec, ...]) -> Precision:
        """Always the wide rate."""
        return "bf16"
