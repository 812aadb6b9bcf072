"""Mxfp4: routed experts in four bits with one eight-bit scale for 32 elements, as gpt-oss has them.

Linears stay as they are: vLLM has no such kernel for them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import plain_linear, tensor
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec

_BLOCK: Final = 32
_INTERMEDIATE_MULTIPLE: Final = 128
_HIDDEN_MULTIPLE: Final = 256


class Mxfp4(NamedTuple):
    """Source: vLLM 0.32, layers/quantization/mxfp4.py, `create_weights` of `GptOssMxfp4MoEMethod`
    and `Mxfp4MoEMethod`."""

    name: str = "mxfp4"

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """Unquantised, whatever the checkpoint says of them."""
        return plain_linear(shape, dtype)

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """Two elements a byte, scales, and biases in bfloat16; sizes rounded up."""
        width, inner = rounded_up(hidden, intermediate)
        weights = (
            tensor("w13_weight", (count, 2 * inner, width // 2), "uint8"),
            tensor("w13_weight_scale", (count, 2 * inner, width // _BLOCK), "uint8"),
            tensor("w2_weight", (count, width, inner // 2), "uint8"),
            tensor("w2_weight_scale", (count, width, inner // _BLOCK), "uint8"),
        )
        if not bias:
            return weights
        return (
            *weights,
            tensor("w13_bias", (count, 2 * inner), "bfloat16"),
            tensor("w2_bias", (count, width), "bfloat16"),
        )

    @property
    def precision(self) -> Precision:
        """Products are computed in bfloat16."""
        return "bf16"


def rounded_up(hidden: int, intermediate: int) -> tuple[int, int]:
    """Both as the Marlin and TensorRT-LLM backends round them up; others round to less.

    Source: vLLM 0.32, fused_moe/oracle/mxfp4.py,
    `mxfp4_round_up_hidden_size_and_intermediate_size`.
    """
    return _multiple(hidden, _HIDDEN_MULTIPLE), _multiple(intermediate, _INTERMEDIATE_MULTIPLE)


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of
