"""Reads what AMD's Quark writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from vllm_layershard.errors import ModelError
from vllm_layershard.models.matching.expression import ExpressionError
from vllm_layershard.models.matching.patterns import Patterns
from vllm_layershard.models.matching.wildcard import read_wildcard
from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.formats.fp8_block import Fp8Block
from vllm_layershard.models.quantization.formats.microscaled import Microscaled
from vllm_layershard.models.quantization.formats.nibbles import Nibbles
from vllm_layershard.models.quantization.formats.nvfp4 import Nvfp4
from vllm_layershard.models.quantization.formats.scaled import Scaled
from vllm_layershard.models.quantization.ignored import Ignored, read_ignored
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_MAX_RULES = 4096
_MAX_WILDCARDS = 256
"""Of a list that is gone through for every module; real ones have a few hundred."""
_SCHEMES = ("per_tensor", "per_channel", "per_block")


class Rule(NamedTuple):
    """A format for the modules of a wildcard, or for those whose name stands in `text`."""

    text: str
    pattern: Patterns | None
    format: Format

    def names(self, prefix: str) -> bool:
        """Source: vLLM 0.32, quark.py, `get_layer_quant_config_from_name`."""
        return prefix in self.text if self.pattern is None else self.pattern.match(prefix)


class Layered(NamedTuple):
    """The first rule that names a module, else one format for all that is not excluded.

    Source: vLLM 0.32, quantization/quark/quark.py, `QuarkConfig._find_matched_config`.
    """

    rules: tuple[Rule, ...]
    default: Format
    ignored: Ignored
    names: Names

    def linear(self, prefix: str) -> Format | None:
        """Of a linear, or of all its parts.

        Raises:
            ModelError: the parts differ.
        """
        if self.ignored.linear(prefix):
            return None
        parts = self.names.parts(prefix) or (prefix,)
        found = [self._of(part) for part in parts]
        if any(other != found[0] for other in found):
            raise ModelError(
                f"{prefix}: layer_quant_config states several formats for its parts; vLLM needs "
                "all of them in one precision"
            )
        return found[0]

    def experts(self, prefix: str) -> Format | None:
        """Of a layer's routed experts: all, or none where any of them is excluded."""
        within = any(name.startswith(f"{prefix}.") for name in self.ignored.names)
        if within or prefix in self.ignored.names or self.ignored.linear(prefix):
            return None
        return self._of(prefix)

    def head(self, prefix: str) -> Format | None:
        """None: vLLM's class of Quark quantises no head."""
        return None

    def _of(self, prefix: str) -> Format:
        return next((rule.format for rule in self.rules if rule.names(prefix)), self.default)


def read_quark(section: ConfigFile, names: Names) -> Quantization:
    """Read a `quantization_config` of method quark.

    Source: vLLM 0.32, quantization/quark/quark.py, `QuarkConfig.from_config`.

    Raises:
        ModelError: a format that vLLM or the planner does not know, or values that make no sense.
    """
    export = section.section("export")
    if export is None:
        section.fail("export", "is missing, and vLLM 0.32 asks for it")
    everything = section.section("global_quant_config")
    if everything is None:
        section.fail("global_quant_config", "is missing")
    kinds = section.section("layer_type_quant_config")
    if kinds is not None and kinds.values:
        section.fail("layer_type_quant_config", _unread("formats by a layer's class"))
    packs = export.string("pack_method") or ""
    default = _format(everything, packs)
    cached = {*export.strings("kv_cache_group"), "*q_proj"}
    layers = section.section("layer_quant_config") or ConfigFile(section.where, {})
    wildcards = sum("*" in text for text in layers.values)
    if len(layers.values) > _MAX_RULES or wildcards > _MAX_WILDCARDS:
        section.fail(
            "layer_quant_config",
            f"has {len(layers.values):,} rules, {wildcards:,} of them with a wildcard; at most "
            f"{_MAX_RULES:,} are read, {_MAX_WILDCARDS} with a wildcard",
        )
    rules = []
    for text in layers.values:
        layer = layers.section(text)
        if layer is not None and layer.get("weight") is not None:
            if text in cached:  # its outputs are the cache's scales
                layer = layer._replace(values={**layer.values, "output_tensors": None})
            rules.append(
                _rule(layers, names.of(text) if names.renames else text, _format(layer, packs))
            )
    ignored = read_ignored(section, ("exclude",), "patterns", names)
    several = any(rule.format.name != default.name for rule in rules)
    name = "quark_mixed" if several else default.name
    return Quantization(name, Layered(tuple(rules), default, ignored, names))


def _rule(section: ConfigFile, text: str, format: Format) -> Rule:
    if "*" not in text:
        return Rule(text, None, format)
    try:
        return Rule(text, Patterns([read_wildcard(text)]), format)
    except ExpressionError as error:
        section.fail(text[:60], f"the pattern {error}")


def _format(group: ConfigFile, packs: str) -> Format:
    """`packs`: how integers of four bits are packed.

    Source: vLLM 0.32, quark.py, `_get_scheme_cls_from_config`; quark_moe.py.
    """
    for key in ("output_tensors", "bias"):
        if group.get(key):
            group.fail(key, "vLLM 0.32 has no class for them in quark's checkpoints")
    if _is_nvfp4(group.get("weight"), group.get("input_tensors")):
        return Nvfp4("quark_nvfp4", 16, "weight", "weight_scale_2", "input_scale_2", False)
    weight, inputs = _one(group, "weight"), _one(group, "input_tensors")
    if weight is None:
        group.fail("weight", "is missing, so no source states the bytes of the weights")
    dtype, scheme = weight.string("dtype") or "", weight.string("qscheme") or ""
    if dtype in _MICROSCALED and scheme == "per_group" and weight.get("group_size") == 32:
        if weight.get("scale_format") != "e8m0":
            weight.fail("scale_format", "vLLM 0.32 has a class for 'e8m0' only")
        bits = _MICROSCALED[dtype]
        low = inputs is not None
        return Microscaled(f"quark_mxfp{bits}", bits, low_bit=low, biases="float32")
    if dtype in ("int4", "uint4") and inputs is None and packs in ("order", "reorder"):
        return Nibbles(weight.integer("group_size", high=1 << 16))
    if dtype == "int8" and inputs is not None and inputs.string("dtype") == "int8":
        return _int8(weight, inputs, scheme)
    of_inputs = inputs.string("dtype") if inputs is not None else None
    if (dtype, of_inputs) != ("fp8_e4m3", "fp8_e4m3") or scheme not in _SCHEMES:
        weight.fail(
            "dtype",
            f"{shown(dtype)} {shown(scheme)} is not supported: vLLM 0.32 has no class for it with "
            f"activations {shown(of_inputs)}; supported are fp8 by tensor, row and block, mxfp4, "
            "mxfp6, mxfp8, nvfp4, int8 by tensor and row, and int4 weights by group",
        )
    dynamic = inputs is not None and inputs.boolean("is_dynamic")
    if scheme == "per_block":
        if weight.get("block_size") != [128, 128] or not dynamic:
            weight.fail("block_size", "vLLM 0.32 has a class for 128 x 128, dynamic, only")
        return Fp8Block((128, 128), scale="weight_scale", refines=False, biases="float32")
    by_row = scheme == "per_channel"
    name = f"quark_fp8_{scheme.removeprefix('per_')}"
    return Scaled(
        name,
        "float8_e4m3fn",
        by_row=by_row,
        static=not dynamic,
        column=False,
        joined=True,
        biases="float32",
    )


_MICROSCALED: Final = {"fp4": 4, "fp6_e3m2": 6, "fp6_e2m3": 6, "fp8_e4m3": 8}
"""Dtype -> bits of a weight of those with one exponent for 32."""


def _int8(weight: ConfigFile, inputs: ConfigFile, scheme: str) -> Scaled:
    """Source: vLLM 0.32, quark.py, `_is_w8a8_int8`."""
    if scheme not in ("per_tensor", "per_channel") or weight.get("symmetric") is not True:
        weight.fail("qscheme", "vLLM 0.32 has a class for symmetric int8 tensors and rows only")
    kind, dynamic = inputs.string("qscheme"), inputs.boolean("is_dynamic")
    if (kind, dynamic) not in (("per_tensor", False), ("per_channel", True)):
        inputs.fail(
            "qscheme", "vLLM 0.32 has a class for static tensors and dynamic rows of activations"
        )
    return Scaled(
        f"quark_int8_{scheme.removeprefix('per_')}",
        "int8",
        by_row=scheme == "per_channel",
        static=not dynamic,
        once=True,
        shifted=inputs.get("symmetric") is not True,
        biases="float32",
    )


def _is_nvfp4(weight: Any, inputs: Any) -> bool:
    """Source: vLLM 0.32, quark.py, `_is_nvfp4`."""
    if not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, Mapping) for x in pair)
        for pair in (weight, inputs)
    ):
        return False
    by_group = all(
        (pair[0].get("dtype"), pair[0].get("qscheme"), pair[0].get("group_size"))
        == ("fp4", "per_group", 16)
        for pair in (weight, inputs)
    )
    by_tensor = all(
        (pair[1].get("dtype"), pair[1].get("qscheme")) == ("fp8_e4m3", "per_tensor")
        and not pair[1].get("is_dynamic")
        for pair in (weight, inputs)
    )
    dynamic = (bool(weight[0].get("is_dynamic")), bool(inputs[0].get("is_dynamic")))
    return by_group and by_tensor and dynamic == (False, True)


def _unread(what: str) -> str:
    return f"{what} are not supported: vLLM 0.32 has a class, and the planner does not read it yet"


def _one(group: ConfigFile, key: str) -> ConfigFile | None:
    """The one entry of a tensor's formats; a list of one is the same."""
    value: Any = group.get(key)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        group.fail(key, _unread("tensors with several scales"))
    if value is None:
        return None
    if not isinstance(value, Mapping):
        group.fail(key, f"{shown(value)} is not an object")
    return ConfigFile(f"{group.where}: {key}", value)
