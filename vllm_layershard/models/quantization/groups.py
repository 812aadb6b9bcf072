"""Groups: the formats of compressed-tensors, each for the modules that its targets name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from vllm_layershard.errors import ModelError
from vllm_layershard.models.matching.expression import Expression, ExpressionError, read_expression
from vllm_layershard.models.matching.patterns import Patterns
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.ignored import Ignored
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_LINEARS: Final = (
    "ColumnParallelLinear",
    "MergedColumnParallelLinear",
    "QKVParallelLinear",
    "ReplicatedLinear",
    "RowParallelLinear",
)
"""vLLM's classes of linears."""

_EXPERTS: Final = "RoutedExperts"
_HEAD: Final = "ParallelLMHead"


class Target(NamedTuple):
    """What a group is for: modules of a name, of a pattern, or of a class. `classes`: of vLLM's."""

    name: str
    format: Format
    pattern: Patterns | None
    classes: frozenset[str]

    def names(self, prefix: str) -> bool:
        """Whether it names this module."""
        return self.name == prefix or (self.pattern is not None and self.pattern.match(prefix))


class Groups(NamedTuple):
    """`targets` in the order of the config: a name goes before a class, and the first before all.

    Source: vLLM 0.32, compressed_tensors/utils.py, `find_matched_target`.
    """

    targets: tuple[Target, ...]
    ignored: Ignored
    fused: Names

    def linear(self, prefix: str) -> Format | None:
        """The format of the first target that names it, or all its parts, or its class.

        Raises:
            ModelError: only some of its parts are ignored.
        """
        if self.ignored.linear(prefix):
            return None
        return self._named(prefix) or self._parts(prefix) or self._of_class(_LINEARS[0])

    def experts(self, prefix: str) -> Format | None:
        """The one format of the first expert's matrices.

        Raises:
            ModelError: they have several, or only some are ignored.
        """
        if self.ignored.experts(prefix):
            return None
        linears = self._of_class("Linear")
        default = self._of_class(_EXPERTS) or linears
        found = [self._named(name) or default for name in self.fused.first_expert(prefix)]
        if any(other is not found[0] for other in found):
            raise ModelError(
                f"{prefix}: config_groups states several formats for its matrices; vLLM needs "
                "all of them in one"
            )
        return found[0]

    def head(self, prefix: str) -> Format | None:
        """Only what names it, or its own class."""
        return None if self.ignored.linear(prefix) else self._named(prefix) or self._of_class(_HEAD)

    def _named(self, prefix: str) -> Format | None:
        return next((t.format for t in self.targets if t.names(prefix)), None)

    def _parts(self, prefix: str) -> Format | None:
        found: Sequence[Format | None] = [self._named(part) for part in self.fused.parts(prefix)]
        return found[0] if found and all(part is not None for part in found) else None

    def _of_class(self, name: str) -> Format | None:
        return next((t.format for t in self.targets if name in t.classes), None)


def read_target(section: ConfigFile, text: str, format: Format, names: Names) -> Target:
    """Read a target: a whole name, a pattern after `re:`, or a class.

    Raises:
        ModelError: a pattern that may take long to match, or one for some classes of linears only.
    """
    everything = (*_LINEARS, _EXPERTS, _HEAD)
    if text.startswith("re:"):
        try:
            expression: Expression = read_expression(text[3:])
            pattern = Patterns([expression])
        except ExpressionError as error:
            section.fail("targets", f"the pattern {shown(text)} {error}")
        classes = frozenset(name for name in everything if pattern.match(name))
    else:
        pattern = None
        classes = frozenset(name for name in everything if text.lower() in name.lower())
        if "." in text and names.renames:
            text = names.of(text)
    some = classes & frozenset(_LINEARS)
    if some and some != frozenset(_LINEARS):
        section.fail("targets", f"{shown(text)} names some of vLLM's classes of linears, not all")
    if text == "Linear":
        classes |= {"Linear"}
    return Target(text, format, pattern, classes)
