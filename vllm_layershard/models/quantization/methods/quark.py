"""Reads what AMD's Quark writes."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.errors import ModelError
from vllm_layershard.models.matching.expression import ExpressionError
from vllm_layershard.models.matching.patterns import Patterns
from vllm_layershard.models.matching.wildcard import read_wildcard
from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.ignored import Ignored, read_ignored
from vllm_layershard.models.quantization.methods.quark_group import format_of_group
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.sources.config_file import ConfigFile

_MAX_RULES = 4096
_MAX_WILDCARDS = 256
"""Of a list that is gone through for every module; real ones have a few hundred."""


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
    default = format_of_group(everything, packs)
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
                _rule(
                    layers, names.of(text) if names.renames else text, format_of_group(layer, packs)
                )
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


def _unread(what: str) -> str:
    return f"{what} are not supported: vLLM 0.32 has a class, and the planner does not read it yet"
