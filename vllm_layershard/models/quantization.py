"""Quantization: which linears a checkpoint quantises, and what tensors they then have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_layershard.errors import ModelError
from vllm_layershard.models.config_file import ConfigFile
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.plan import TensorSpec

Fused = Mapping[str, tuple[str, ...]]
"""vLLM's name of a fused linear -> the names of its parts in a checkpoint."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """None, or fp8 with one float32 scale a block (DeepSeek).

    `block` is (rows, columns) of one scale, None without quantisation. `skipped` are the modules
    that stay in the model's dtype.
    Source: vLLM 0.32, layers/quantization/fp8.py, `Fp8LinearMethod.create_weights`.
    """

    block: tuple[int, int] | None = None
    skipped: frozenset[str] = frozenset()
    skipped_experts: tuple[str, ...] = ()
    """Those of `skipped` that speak of experts: vLLM compares them by substring."""

    @property
    def name(self) -> str:
        """`none`, or for example `fp8_block_128x128`."""
        return "none" if self.block is None else f"fp8_block_{self.block[0]}x{self.block[1]}"

    def applies_to(self, prefix: str, fused: Fused) -> bool:
        """Whether vLLM quantises the linear (or the routed experts) of this prefix.

        Source: vLLM 0.32, quantization/utils/quant_utils.py, `is_layer_skipped` (exact mode).

        Raises:
            ModelError: only some of a fused linear's parts are quantised.
        """
        if self.block is None:
            return False
        stem, _, last = prefix.rpartition(".")
        if prefix in self.skipped:
            return False
        if last in fused:
            parts = [f"{stem}.{part}" in self.skipped for part in fused[last]]
            if any(parts) and not all(parts):
                raise ModelError(
                    f"{prefix}: modules_to_not_convert names some but not all of its parts "
                    f"({', '.join(fused[last])}); vLLM needs all of them in one precision"
                )
            return not all(parts)
        if "experts" in prefix:
            return not any(prefix in name for name in self.skipped_experts)
        return True

    def tensors(
        self, shape: tuple[int, int], dtype: str, quantised: bool
    ) -> tuple[TensorSpec, ...]:
        """The tensors of a linear of this per-rank shape [out, in], contiguous."""
        rows, columns = shape
        if not quantised or self.block is None:
            return (_tensor("weight", (rows, columns), dtype),)
        block_rows, block_columns = self.block
        scales = (-(-rows // block_rows), -(-columns // block_columns))
        return (
            _tensor("weight", (rows, columns), "float8_e4m3fn"),
            _tensor("weight_scale_inv", scales, "float32"),
        )


def _tensor(name: str, shape: tuple[int, int], dtype: str) -> TensorSpec:
    nbytes = shape[0] * shape[1] * DTYPE_BYTES[dtype]
    return TensorSpec(name=name, shape=shape, dtype=dtype, nbytes=nbytes, stride=(shape[1], 1))


def quantization_of(config: ConfigFile) -> Quantization:
    """Read `quantization_config`.

    Raises:
        ModelError: a method that is not supported yet, or values that make no sense.
    """
    section = config.section("quantization_config")
    if section is None and config.get("compression_config") is not None:
        config.fail("compression_config", "this quantisation is not supported yet")
    if section is None:
        return Quantization()
    method = section.string("quant_method")
    block = section.get("weight_block_size")
    if method != "fp8" or block is None:
        config.fail(
            "quantization_config",
            f"quant_method {method!r}{'' if method != 'fp8' else ' without weight_block_size'} is "
            "not supported yet; supported are none and fp8 with weight_block_size",
        )
    if section.string("activation_scheme") != "dynamic":
        section.fail("activation_scheme", "fp8 blocks are supported with 'dynamic' only")
    if not (
        isinstance(block, list)
        and len(block) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= 4096 for n in block)
    ):
        section.fail("weight_block_size", "is not a list of two whole numbers from 1 to 4,096")
    skipped = section.strings("ignored_layers") or section.strings("modules_to_not_convert")
    return Quantization(
        block=(block[0], block[1]),
        skipped=frozenset(skipped),
        skipped_experts=tuple(name for name in skipped if "experts" in name),
    )
