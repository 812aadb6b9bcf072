"""Packed: integers of four or eight bits, several in an int32, with one scale a group of a row.

The `pack-quantized` format of compressed-tensors, as Kimi-K2.5's experts have it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from vllm_layershard.errors import ModelError, PlanError
from vllm_layershard.models.config_file import ConfigFile
from vllm_layershard.models.family import Precision
from vllm_layershard.models.quantization.method import (
    FUSED,
    bias_of,
    expert_biases,
    plain_experts,
    plain_linear,
    tensor,
)
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec

_MAX_PATTERN: Final = 512
_MAX_REPEATS: Final = 6
"""More repetitions than any real pattern has: each multiplies the time that a match may take."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Symmetric, without activation order. `ignored` are names, and patterns after `re:`.

    Source: vLLM 0.32, quantization/compressed_tensors/, `CompressedTensorsWNA16.create_weights`
    and `CompressedTensorsWNA16MoEMethod.create_weights`.
    """

    bits: int
    group: int
    ignored: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]

    @property
    def name(self) -> str:
        """For example `compressed_tensors_int4_g32`."""
        return f"compressed_tensors_int{self.bits}_g{self.group}"

    def tensors(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """Packed weight, scales, the shape before packing, and the bias if there is one.

        Raises:
            PlanError: a group would be split over two ranks.
            ModelError: only some of a fused linear's parts are ignored.
        """
        if not shape.quantisable or self._ignores(prefix):
            return plain_linear(shape, dtype)
        self._check_groups(prefix, shape.inner)
        return (
            tensor("weight_packed", (shape.rows, shape.inner * self.bits // 32), "int32"),
            tensor("weight_scale", (shape.rows, shape.inner // self.group), dtype),
            tensor("weight_shape", (2,), "int64"),
            *bias_of(shape, dtype),
        )

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """Stacked packed weights, scales and shapes.

        Raises:
            PlanError: a group would be split over two ranks.
        """
        if self._matches(f"{prefix}.0.gate_proj"):
            return plain_experts(count, hidden, intermediate, bias, dtype)
        self._check_groups(prefix, hidden)
        self._check_groups(prefix, intermediate)
        rows, pack = 2 * intermediate, 32 // self.bits
        return (
            tensor("w13_weight_packed", (count, rows, hidden // pack), "int32"),
            tensor("w2_weight_packed", (count, hidden, intermediate // pack), "int32"),
            tensor("w13_weight_scale", (count, rows, hidden // self.group), dtype),
            tensor("w2_weight_scale", (count, hidden, intermediate // self.group), dtype),
            tensor("w13_weight_shape", (count, 2), dtype),
            tensor("w2_weight_shape", (count, 2), dtype),
            *expert_biases(count, hidden, intermediate, bias, dtype),
        )

    def precision(self, tensors: tuple[TensorSpec, ...]) -> Precision:
        """Products are computed in the model's dtype."""
        return "bf16"

    def _check_groups(self, prefix: str, columns: int) -> None:
        if columns % self.group:
            raise PlanError(
                f"{prefix}: {columns:,} columns on a rank are not a multiple of the group of "
                f"{self.group}; use fewer ranks, or --ep for routed experts"
            )

    def _ignores(self, prefix: str) -> bool:
        stem, _, last = prefix.rpartition(".")
        if self._matches(prefix):
            return True
        if last not in FUSED:
            return False
        parts = [self._matches(f"{stem}.{part}") for part in FUSED[last]]
        if any(parts) and not all(parts):
            raise ModelError(
                f"{prefix}: quantization_config.ignore names some but not all of its parts "
                f"({', '.join(FUSED[last])}); vLLM needs all of them in one precision"
            )
        return all(parts)

    def _matches(self, prefix: str) -> bool:
        return prefix in self.ignored or any(pattern.match(prefix) for pattern in self.patterns)


def read_packed(section: ConfigFile) -> Packed:
    """Read a `quantization_config` of method compressed-tensors and format pack-quantized.

    Raises:
        ModelError: values that make no sense, or that the planner does not know.
    """
    if section.string("format") != "pack-quantized":
        section.fail(
            "format", f"{section.string('format')!r} is not supported yet; pack-quantized is"
        )
    groups = section.section("config_groups")
    names = list(groups.values) if groups is not None else []
    group = groups.section(names[0]) if groups is not None and len(names) == 1 else None
    weights = group.section("weights") if group is not None else None
    if group is None or weights is None:
        section.fail("config_groups", "exactly one group with weights is supported")
    if group.strings("targets") != ("Linear",) or group.get("input_activations") is not None:
        group.fail("targets", "supported is ['Linear'] without quantised activations")
    if weights.string("strategy") != "group" or not weights.boolean("symmetric"):
        weights.fail("strategy", "supported is 'group' with symmetric true")
    if weights.get("actorder") is not None:
        weights.fail("actorder", "an activation order is not supported yet")
    bits = weights.integer("num_bits", low=4, high=8)
    if bits not in (4, 8):
        weights.fail("num_bits", f"{bits} is not 4 or 8")
    ignored = section.strings("ignore")
    return Packed(
        bits=bits,
        group=weights.integer("group_size", low=32, high=1 << 16),
        ignored=frozenset(ignored),
        patterns=tuple(
            _pattern(section, name.removeprefix("re:")) for name in ignored if name[:3] == "re:"
        ),
    )


def _pattern(section: ConfigFile, text: str) -> re.Pattern[str]:
    """Compile a pattern that cannot take long to match."""
    repeats = len(re.findall(r"[*+{]", text))
    if len(text) > _MAX_PATTERN or repeats > _MAX_REPEATS or re.search(r"\)[*+{?]", text):
        section.fail("ignore", "holds a pattern that is too long or repeats too much to be matched")
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError):
        section.fail("ignore", f"holds {text[:60]!r}, which is not a regular expression")
