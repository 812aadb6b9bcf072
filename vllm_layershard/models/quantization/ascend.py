"""Ascend: eight-bit integers as ModelSlim writes them and vllm-ascend serves them.

Which module has which precision stands in `quant_model_description.json` beside config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_layershard.errors import ModelError
from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.method import (
    FUSED,
    bias_of,
    plain_experts,
    plain_linear,
    tensor,
)
from vllm_layershard.models.quantization.modelslim import DESCRIPTION, KINDS
from vllm_layershard.models.shape import Shape
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.plan import TensorSpec

_FLOAT, _STATIC, _DYNAMIC = "FLOAT", "W8A8", "W8A8_DYNAMIC"


@dataclass(frozen=True, slots=True, eq=False)
class Ascend:
    """`kinds`: module's name -> precision of its weight; of experts only the first's.

    Counted is what lies in memory after loading: float32 and int64 copies of scales too. NZ tiles
    of 16 x 32 pad no size that is a multiple of 32.
    Source: vllm-ascend 5ed63ef, vllm_ascend/quantization/methods/w8a8_static.py and
    w8a8_dynamic.py; modelslim_config.py, `get_linear_quant_type`.
    """

    kinds: Mapping[str, str]
    name: str = "ascend_w8a8"

    def tensors(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """The weight, its scales and offsets, and what a static activation needs.

        Raises:
            ModelError: the description does not name it, or with an unknown precision.
        """
        kind = self._kind(prefix) if shape.quantisable else _FLOAT
        if kind == _FLOAT:
            return plain_linear(shape, dtype)
        rows, inner = shape.rows, shape.inner
        scales: tuple[TensorSpec, ...] = (tensor("weight_scale_fp32", (rows,), "float32"),)
        if kind == _STATIC:
            scales = (
                tensor("input_scale", (1,), dtype),
                tensor("input_offset", (1,), "int8"),
                tensor("quant_bias", (rows,), "int32"),
                tensor("deq_scale", (rows,), "float32" if dtype == "bfloat16" else "int64"),
                tensor("aclnn_input_scale", (inner,), dtype),
                tensor("aclnn_input_scale_reciprocal", (inner,), dtype),
                tensor("aclnn_input_offset", (inner,), dtype),
            )
        return (
            tensor("weight", (rows, inner), "int8"),
            tensor("weight_scale", (rows,), dtype),
            tensor("weight_offset", (rows,), dtype),
            *scales,
            *bias_of(shape, dtype),
        )

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """The stacked weights, and scales in three formats.

        Raises:
            ModelError: the description does not name them, or with an unknown precision.
        """
        kind = self._kind(f"{prefix}.0.gate_proj")
        if kind == _FLOAT:
            return plain_experts(count, hidden, intermediate, bias, dtype)
        if kind == _STATIC:
            raise ModelError(f"{prefix}: vllm-ascend has no experts with precision {kind}")
        tensors = []
        for name, rows, inner in (("w13", 2 * intermediate, hidden), ("w2", hidden, intermediate)):
            tensors += [
                tensor(f"{name}_weight", (count, rows, inner), "int8"),
                tensor(f"{name}_weight_scale", (count, rows), dtype),
                tensor(f"{name}_weight_offset", (count, rows), dtype),
                tensor(f"{name}_weight_scale_fp32", (count, rows), "float32"),
                tensor(f"fused_{name.replace('13', '1')}_scale", (count, rows), "int64"),
            ]
        return tuple(tensors)

    def precision(self, tensors: tuple[TensorSpec, ...]) -> Precision:
        """Products of eight-bit weights run at the low-bit rate."""
        return "fp8" if tensors[0].dtype == "int8" else "bf16"

    def _kind(self, prefix: str) -> str:
        module = prefix.removeprefix("language_model.")
        stem, _, last = module.rpartition(".")
        names = [f"{stem}.{part}" for part in FUSED[last]] if last in FUSED else [module]
        found = {self.kinds.get(name) for name in names}
        kind = found.pop()
        if found or kind not in (_FLOAT, _STATIC, _DYNAMIC):
            stated = "several precisions" if found else kind or "no precision"
            raise ModelError(
                f"{prefix}: {DESCRIPTION} states {stated} for {', '.join(names)}; "
                f"supported are {_FLOAT}, {_STATIC} and {_DYNAMIC}, one for all parts of a linear"
            )
        return kind


def read_ascend(section: ConfigFile) -> Ascend:
    """Read what `description.py` has put in the place of a `quantization_config`.

    Raises:
        ModelError: there is no such description.
    """
    kinds = section.get(KINDS)
    if not isinstance(kinds, Mapping):
        section.fail("quant_method", f"'ascend' needs {DESCRIPTION} beside config.json")
    return Ascend(kinds)
