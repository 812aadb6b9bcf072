"""Gptq: four- or eight-bit integers, packed along the input, with a scale a group."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.errors import ModelError
from vllm_layershard.models.matching.expression import Expression, ExpressionError
from vllm_layershard.models.matching.patterns import MAX_PATTERNS, Patterns
from vllm_layershard.models.matching.regular import read_expression
from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.format import (
    Format,
    bias_of,
    check_loaded,
    check_packing,
    grouped_matrices,
    groups_of,
    tensor,
)
from vllm_layershard.models.quantization.names import Names
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
        groups, pack = groups_of(prefix, shape.inner, self.group), self._pack(prefix, shape.inner)
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
            ModelError: experts with biases, which vLLM does not load.
        """
        check_loaded(prefix, bias, "gptq's packing")
        tensors = []
        for name, rows, inner, groups in grouped_matrices(prefix, hidden, intermediate, self.group):
            pack = self._pack(prefix, inner)
            tensors += [
                tensor(f"{name}_qweight", (count, inner // pack, rows), "int32"),
                tensor(f"{name}_scales", (count, groups, rows), dtype),
            ]
        return tuple(tensors)

    @property
    def precision(self) -> Precision:
        """Products are computed in the model's dtype."""
        return "bf16"

    def _pack(self, prefix: str, inner: int) -> int:
        """Elements in an int32."""
        check_packing(prefix, inner, 32 // self.bits)
        return 32 // self.bits


class Ruled(NamedTuple):
    """`patterns` and `formats`: the first that matches says how a module is, None unquantised.

    `modules`: parts of names, of which one is in each linear's that is quantised; () is all.
    Source: vLLM 0.32, quantization/utils/gptq_utils.py, `get_dynamic_override` and
    `is_layer_gptq_quantized`; auto_gptq.py, `get_moe_quant_method`.
    """

    patterns: Patterns
    formats: tuple[Gptq | None, ...]
    default: Gptq
    modules: tuple[str, ...]
    names: Names
    quantises_head: bool

    def linear(self, prefix: str) -> Format | None:
        """By the rules, where the modules that are quantised include it.

        Raises:
            ModelError: they include some of a fused linear's parts.
        """
        parts = self.names.parts(prefix) or (prefix,)
        found = [not self.modules or any(m in part for m in self.modules) for part in parts]
        if any(found) != all(found):
            raise ModelError(
                f"{prefix}: modules_in_block_to_quantize names some but not all of its parts; vLLM "
                "needs all of them in one precision"
            )
        return self.experts(prefix) if found[0] else None

    def experts(self, prefix: str) -> Format | None:
        """By the rules."""
        first = self.patterns.first(prefix)
        return self.default if first is None else self.formats[first]

    def head(self, prefix: str) -> Format | None:
        """As of a linear, or None."""
        return self.linear(prefix) if self.quantises_head else None


def read_gptq(section: ConfigFile, names: Names) -> Quantization:
    """Read a `quantization_config` of method gptq.

    Raises:
        ModelError: values that make no sense, that vLLM refuses, or that the planner does not know.
    """
    default = _format(section, section)
    rules = section.section("dynamic") or ConfigFile(section.where, {})
    if len(rules.values) > MAX_PATTERNS:
        section.fail("dynamic", f"has {len(rules.values):,} rules; {MAX_PATTERNS:,} are read")
    expressions: list[Expression] = []
    formats: list[Gptq | None] = []
    for text in rules.values:
        try:
            expressions.append(read_expression(text[2:] if text[:2] in ("+:", "-:") else text))
        except ExpressionError as error:
            rules.fail(text[:60], f"the pattern {error}")
        changed = None if text.startswith("-:") else rules.section(text)
        formats.append(None if text.startswith("-:") else _format(section, changed or section))
    try:
        patterns = Patterns(expressions)
    except ExpressionError as error:
        section.fail("dynamic", f"its patterns {error}")
    several = any(found not in (None, default) for found in formats)
    return Quantization(
        "gptq_mixed" if several else default.name,
        Ruled(
            patterns,
            tuple(formats),
            default,
            _modules(section, names),
            names,
            section.boolean("lm_head"),
        ),
    )


def _format(section: ConfigFile, rule: ConfigFile) -> Gptq:
    """What a rule changes of the section's values."""
    merged = ConfigFile(rule.where, {**section.values, **rule.values})
    if merged.get("sym") is not True:
        merged.fail("sym", "vLLM supports gptq with symmetric weights only")
    bits = merged.integer("bits", high=64)
    if bits not in (4, 8):
        merged.fail("bits", f"{bits} is not 4 or 8")
    group = None if merged.get("group_size") == -1 else merged.integer("group_size", low=16)
    if merged.boolean("desc_act") and group is not None:
        merged.fail("desc_act", "vLLM no longer supports an activation order within groups")
    return Gptq(bits=bits, group=group)


def _modules(section: ConfigFile, names: Names) -> tuple[str, ...]:
    """Names, or lists of names."""
    value = section.get("modules_in_block_to_quantize") or []
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        value = [name for item in value for name in item]
    flat = ConfigFile(section.where, {"modules_in_block_to_quantize": value})
    found = flat.strings("modules_in_block_to_quantize")
    if len(found) > MAX_PATTERNS:
        section.fail("modules_in_block_to_quantize", f"at most {MAX_PATTERNS:,} names are read")
    return tuple(map(names.of, found)) if names.renames else found
