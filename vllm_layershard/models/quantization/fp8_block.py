"""Fp8Block: float8 weights with one float32 scale a block, as DeepSeek publishes them."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from vllm_layershard.errors import ModelError, PlanError
from vllm_layershard.models.config_file import ConfigFile
from vllm_layershard.models.family import Precision
from vllm_layershard.models.quantization.method import (
    FUSED,
    bias_of,
    expert_biases,
    is_skipped,
    plain_experts,
    plain_linear,
    tensor,
)
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec

_MAX_BLOCK = 4096
_LEAST_REFINED = 32


@dataclass(frozen=True, slots=True)
class Fp8Block:
    """`block` is (rows, columns) of one scale; `skipped` are modules that stay unquantised.

    Source: vLLM 0.32, layers/quantization/fp8.py, `Fp8LinearMethod` and `Fp8MoEMethod`.
    """

    block: tuple[int, int]
    skipped: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """For example `fp8_block_128x128`."""
        return f"fp8_block_{self.block[0]}x{self.block[1]}"

    def tensors(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """The weight, its scales, and the bias if there is one."""
        if not shape.quantisable or self._skips(prefix):
            return plain_linear(shape, dtype)
        self._check_blocks(prefix, shape, tp)
        weight = _pair("weight", (shape.rows, shape.inner), self.block)
        return (*weight, *bias_of(shape, dtype))

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """The stacked weights and scales."""
        # vLLM compares experts by substring.
        if any(prefix in name for name in self.skipped if "experts" in name):
            return plain_experts(count, hidden, intermediate, bias, dtype)
        block = self._expert_block(prefix, hidden, intermediate)
        return (
            *_pair("w13_weight", (count, 2 * intermediate, hidden), block),
            *_pair("w2_weight", (count, hidden, intermediate), block),
            *expert_biases(count, hidden, intermediate, bias, dtype),
        )

    def precision(self, tensors: tuple[TensorSpec, ...]) -> Precision:
        """Products of float8 weights run at the low-bit rate."""
        return "fp8" if tensors[0].dtype == "float8_e4m3fn" else "bf16"

    def _expert_block(self, prefix: str, hidden: int, intermediate: int) -> tuple[int, int]:
        """The block of the experts' scales: refined where ranks split the checkpoint's.

        Source: vLLM 0.32, fused_moe/oracle/fp8.py, `refine_fp8_moe_block_shape`.
        """
        if intermediate % self.block[0] == 0:
            return self.block
        refined = gcd(*self.block, intermediate, hidden)
        if refined < _LEAST_REFINED:
            raise PlanError(
                f"{prefix}: {intermediate:,} rows of each expert on a rank share no block of at "
                f"least {_LEAST_REFINED} with the fp8 block of {self.block[0]}; use --ep or fewer "
                "ranks"
            )
        return refined, refined

    def _skips(self, prefix: str) -> bool:
        skips = is_skipped(prefix, self.skipped)
        if skips is None:
            parts = ", ".join(FUSED[prefix.rpartition(".")[2]])
            raise ModelError(
                f"{prefix}: modules_to_not_convert names some but not all of its parts ({parts}); "
                "vLLM needs all of them in one precision"
            )
        return skips

    def _check_blocks(self, prefix: str, shape: Shape, tp: int) -> None:
        """Source: vLLM 0.32, quantization/utils/fp8_utils.py, `validate_fp8_block_shape`."""
        odd = 0
        rows, columns = self.block
        if tp > 1 and shape.split == "in" and shape.inner % columns:
            odd, unit = shape.inner, columns
        elif tp > 1 and shape.split == "out":
            odd, unit = next((out for out in shape.outs if out % rows), 0), rows
        else:
            odd, unit = next((out for out in shape.outs[:-1] if out % rows), 0), rows
        if odd:
            raise PlanError(
                f"{prefix}: {odd:,} on each of {tp} tensor-parallel ranks is not a multiple of the "
                f"fp8 block of {unit}; choose another tp"
            )


def _pair(
    name: str, shape: tuple[int, ...], block: tuple[int, int]
) -> tuple[TensorSpec, TensorSpec]:
    """A weight, and its scales; a gate and an up projection have scales of their own."""
    *stack, rows, columns = shape
    halves = 2 if name == "w13_weight" else 1
    scale_rows = halves * -(-(rows // halves) // block[0])
    return (
        tensor(name, shape, "float8_e4m3fn"),
        tensor(f"{name}_scale_inv", (*stack, scale_rows, -(-columns // block[1])), "float32"),
    )


def read_fp8_block(section: ConfigFile) -> Fp8Block:
    """Read a `quantization_config` of method fp8 with `weight_block_size`.

    Raises:
        ModelError: values that make no sense.
    """
    block = section.get("weight_block_size")
    if section.string("activation_scheme") != "dynamic":
        section.fail("activation_scheme", "fp8 blocks are supported with 'dynamic' only")
    if not (
        isinstance(block, list)
        and len(block) == 2
        and all(
            isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= _MAX_BLOCK for n in block
        )
    ):
        section.fail("weight_block_size", "is not a list of two whole numbers from 1 to 4,096")
    skipped = section.strings("ignored_layers") or section.strings("modules_to_not_convert")
    return Fp8Block(block=(block[0], block[1]), skipped=frozenset(skipped))
