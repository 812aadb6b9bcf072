"""Reads Meta's fbgemm_fp8, which vLLM 0.32 serves with `--allow-deprecated-quantization` only."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.format import (
    Format,
    bias_of,
    plain_experts,
    tensor,
)
from vllm_layershard.models.quantization.ignored import Ignored, read_ignored
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.shape import Shape
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.plan import TensorSpec


class Fbgemm(NamedTuple):
    """float8 rows with a float32 scale each, and one bound of all activations.

    Source: vLLM 0.32, quantization/fbgemm_fp8.py, `FBGEMMFp8LinearMethod.create_weights`.
    """

    name: str = "fbgemm_fp8"

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """The weight, its scales, the bound, and the bias if there is one."""
        return (
            tensor("weight", (shape.rows, shape.inner), "float8_e4m3fn"),
            tensor("weight_scale", (shape.rows, 1), "float32"),
            tensor("input_scale_ub", (), "float32"),
            *bias_of(shape, dtype),
        )

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """Unquantised, as of a class that has no method for experts."""
        return plain_experts(count, hidden, intermediate, bias, dtype)

    @property
    def precision(self) -> Precision:
        """Products of float8 weights run at the low-bit rate."""
        return "fp8"


class Linears(NamedTuple):
    """One format for all linears that are not ignored."""

    format: Format
    ignored: Ignored

    def linear(self, prefix: str) -> Format | None:
        """The one format, or none where the linear is ignored."""
        return None if self.ignored.linear(prefix) else self.format

    def experts(self, prefix: str) -> Format | None:
        """None: vLLM's class has no method for them."""
        return None

    def head(self, prefix: str) -> Format | None:
        """None."""
        return None


def read_fbgemm_fp8(section: ConfigFile, names: Names) -> Quantization:
    """Read a `quantization_config` of method fbgemm_fp8.

    Raises:
        ModelError: a key that vLLM asks for is missing, or values that make no sense.
    """
    for key in ("modules_to_not_convert", "activation_scale_ub"):
        if key not in section.values:
            section.fail(key, "is missing, and vLLM 0.32 asks for it")
    ignored = read_ignored(section, ("modules_to_not_convert",), "exact", names)
    return Quantization("fbgemm_fp8", Linears(Fbgemm(), ignored))
