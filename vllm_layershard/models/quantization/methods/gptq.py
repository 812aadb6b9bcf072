"""Gptq: four- or eight-bit integers, packed along the input, with a scale a group."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.format import (
    bias_of,
    check_groups,
    check_packing,
    expert_biases,
    tensor,
)
from vllm_layershard.models.quantization.ignored import Ignored
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.quantization.uniform import uniform
from vllm_layershard.models.shape import Shape
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.plan import TensorSpec


class Gptq(NamedTuple):
    """Symmetric: the zero points that a checkpoint stores are dropped when it is loaded.

    `group` is None where all columns of a row have one scale. Which linears a checkpoint leaves
    unquantised, vLLM sees from its tensors; here all are taken for quantised.
    Source: vLLM 0.32, quantization/auto_gptq.py, `AutoGPTQLinearMethod` and `AutoGPTQMoEMethod`;
    kernels/linear/mixed_precision/marlin.py, `process_weights_after_loading`.
    """

    bits: int
    group: int | None

    @property
    def name(self) -> str:
        """For example `gptq_int4_g128`."""
        return f"gptq_int{self.bits}_{f'g{self.group}' if self.group else 'channel'}"

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """Packed weight, scales, and the bias if there is one.

        Raises:
            PlanError: a group or an int32 would be split over two ranks.
        """
        pack, groups = self._columns(prefix, shape.inner)
        return (
            tensor("qweight", (shape.inner // pack, shape.rows), "int32"),
            tensor("scales", (groups, shape.rows), dtype),
            *bias_of(shape, dtype),
        )

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """Stacked in the same way.

        Raises:
            PlanError: a group would be split over two ranks.
        """
        tensors = []
        for name, inner, rows in (("w13", hidden, 2 * intermediate), ("w2", intermediate, hidden)):
            pack, groups = self._columns(prefix, inner)
            tensors += [
                tensor(f"{name}_qweight", (count, inner // pack, rows), "int32"),
                tensor(f"{name}_scales", (count, groups, rows), dtype),
            ]
        return (*tensors, *expert_biases(count, hidden, intermediate, bias, dtype))

    @property
    def precision(self) -> Precision:
        """Products are computed in the model's dtype."""
        return "bf16"

    def _columns(self, prefix: str, inner: int) -> tuple[int, int]:
        """Elements in an int32, and groups."""
        check_groups(prefix, inner, self.group or 1)
        check_packing(prefix, inner, 32 // self.bits)
        return 32 // self.bits, inner // (self.group or inner)


def read_gptq(section: ConfigFile, names: Names) -> Quantization:
    """Read a `quantization_config` of method gptq.

    Raises:
        ModelError: values that make no sense, that vLLM refuses, or that the planner does not know.
    """
    for key in ("dynamic", "modules_in_block_to_quantize"):
        if section.get(key):
            section.fail(key, "precisions that differ from linear to linear are not supported yet")
    if section.get("sym") is not True:
        section.fail("sym", "vLLM supports gptq with symmetric weights only")
    bits = section.integer("bits", high=64)
    if bits not in (4, 8):
        section.fail("bits", f"{bits} is not 4 or 8")
    group = None if section.get("group_size") == -1 else section.integer("group_size", low=16)
    if section.boolean("desc_act") and group is not None:
        section.fail("desc_act", "vLLM no longer supports an activation order within groups")
    gptq = Gptq(bits=bits, group=group)
    return uniform(gptq, Ignored(), quantises_head=section.boolean("lm_head"))
