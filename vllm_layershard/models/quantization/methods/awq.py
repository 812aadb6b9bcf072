"""Awq: four-bit integers, packed along the output, with a scale and a zero point a group."""

from __future__ import annotations

from typing import Final, NamedTuple

from vllm_layershard.errors import ModelError, PlanError
from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.format import (
    bias_of,
    check_loaded,
    check_packing,
    grouped_matrices,
    groups_of,
    tensor,
)
from vllm_layershard.models.quantization.ignored import read_ignored
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.quantization.uniform import uniform
from vllm_layershard.models.shape import Shape
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.plan import TensorSpec

_PACK: Final = 8
"""Elements in an int32."""


class Awq(NamedTuple):
    """Zero points are kept also where the kernel takes none. `group`: None is a whole row.

    Source: vLLM 0.32, quantization/auto_awq.py, `AutoAWQMarlinLinearMethod` and `AutoAWQMoEMethod`.
    """

    group: int | None

    @property
    def name(self) -> str:
        """For example `awq_int4_g128`."""
        return f"awq_int4_{f'g{self.group}' if self.group else 'channel'}"

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """Packed weight, packed zero points, scales, and the bias if there is one.

        Raises:
            PlanError: a row, a group or an int32 would be split over two ranks.
        """
        if self.group is None and tp > 1 and shape.split == "in":
            raise PlanError(
                f"{prefix}: vLLM 0.32 has no awq with one scale a row whose columns {tp} ranks "
                "share; use --tp 1"
            )
        groups = groups_of(prefix, shape.inner, self.group)
        check_packing(prefix, shape.rows, _PACK)
        return (
            tensor("qweight", (shape.inner, shape.rows // _PACK), "int32"),
            tensor("qzeros", (groups, shape.rows // _PACK), "int32"),
            tensor("scales", (groups, shape.rows), dtype),
            *bias_of(shape, dtype),
        )

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """Stacked in the same way, without biases.

        Raises:
            PlanError: a group would be split over two ranks.
            ModelError: rows with one scale, of which vLLM has no experts, or experts with biases,
                which vLLM does not load.
        """
        check_loaded(prefix, bias, "awq's packing")
        if self.group is None:
            raise ModelError(
                f"{prefix}: group_size: vLLM 0.32 has no routed experts in awq with one scale a "
                "row (-1); it has them by group"
            )
        tensors = []
        for name, rows, inner, groups in grouped_matrices(prefix, hidden, intermediate, self.group):
            tensors += [
                tensor(f"{name}_qweight", (count, inner, rows // _PACK), "int32"),
                tensor(f"{name}_qzeros", (count, groups, rows // _PACK), "int32"),
                tensor(f"{name}_scales", (count, groups, rows), dtype),
            ]
        return tuple(tensors)

    @property
    def precision(self) -> Precision:
        """Products are computed in the model's dtype."""
        return "bf16"


def read_awq(section: ConfigFile, names: Names) -> Quantization:
    """Read a `quantization_config` of method awq.

    Raises:
        ModelError: values that make no sense, or that vLLM refuses.
    """
    bits = "w_bit" if section.get("w_bit") is not None else "bits"
    if section.integer(bits, high=64) != 4:
        section.fail(bits, "vLLM supports awq with 4 bits only")
    group = "q_group_size" if section.get("q_group_size") is not None else "group_size"
    whole = section.get(group) == -1
    awq = Awq(group=None if whole else section.integer(group, low=16, high=1 << 16))
    ignored = read_ignored(section, ("modules_to_not_convert",), "inside", names)
    return uniform(awq, ignored, quantises_head=section.boolean("lm_head"))
