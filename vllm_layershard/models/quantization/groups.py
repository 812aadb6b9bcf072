"""Groups: the formats of compressed-tensors, each for the modules that its targets name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from vllm_layershard.errors import ModelError
from vllm_layershard.models.matching.expression import Expression, ExpressionError
from vllm_layershard.models.matching.patterns import MAX_PATTERNS, Patterns
from vllm_layershard.models.matching.regular import read_expression
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.ignored import Ignored
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.sources.config_file import ConfigFile, shown

CLASSES: Final[Mapping[str, str]] = {
    "qkv_proj": "QKVParallelLinear",
    "query_key_value": "QKVParallelLinear",
    "gate_up_proj": "MergedColumnParallelLinear",
    "in_proj_qkvz": "MergedColumnParallelLinear",
    "in_proj_ba": "MergedColumnParallelLinear",
    "fused_qkv_a_proj": "DeepSeekV2FusedQkvAProjLinear",
    "q_proj": "ColumnParallelLinear",
    "q_b_proj": "ColumnParallelLinear",
    "kv_b_proj": "ColumnParallelLinear",
    "kv_a_proj_with_mqa": "ReplicatedLinear",
    "wq_b": "ReplicatedLinear",
    "gate": "GateLinear",
    "o_proj": "RowParallelLinear",
    "out_proj": "RowParallelLinear",
    "dense": "RowParallelLinear",
    "down_proj": "RowParallelLinear",
    "fc": "ColumnParallelLinear",
}
"""The last name of a linear that may be quantised -> vLLM's class of it. A test builds the classes
and compares."""

_EXPERTS: Final = "RoutedExperts"
_HEAD: Final = "ParallelLMHead"
_EMBEDDING: Final = "VocabParallelEmbedding"


def class_of(prefix: str) -> str | None:
    """vLLM's class of a module that may be quantised; None: of another."""
    last = prefix.rpartition(".")[2]
    return {"experts": _EXPERTS, "lm_head": _HEAD}.get(last) or CLASSES.get(last)


class Target(NamedTuple):
    """What a group is for: modules of a name, of a pattern, or of a class. `classes`: of vLLM's."""

    name: str
    format: Format
    pattern: Expression | None
    classes: frozenset[str]


class Groups(NamedTuple):
    """`formats` of the targets, in the order of the config.

    A name goes before a class, and the first before all. `names` and `classes` have the index of
    the first target that says so, and `patterned` of each of the patterns.
    Source: vLLM 0.32, compressed_tensors/utils.py, `find_matched_target`.
    """

    formats: tuple[Format, ...]
    names: Mapping[str, int]
    classes: Mapping[str, int]
    patterns: Patterns
    patterned: tuple[int, ...]
    ignored: Ignored
    fused: Names

    def linear(self, prefix: str) -> Format | None:
        """The format of the first target that names it, or all its parts, or its class.

        Raises:
            ModelError: only some of its parts are ignored.
        """
        if self.ignored.linear(prefix):
            return None
        of_class = CLASSES[prefix.rpartition(".")[2]]
        return self.named(prefix) or self._parts(prefix) or self._of_class(of_class)

    def experts(self, prefix: str) -> Format | None:
        """The one format of the first expert's matrices.

        Raises:
            ModelError: they have several, or only some are ignored.
        """
        if self.ignored.experts(prefix):
            return None
        linears = self._of_class("Linear")
        default = self._of_class(_EXPERTS) or linears
        found = [self.named(name) or default for name in self.fused.first_expert(prefix)]
        if any(other is not found[0] for other in found):
            raise ModelError(
                f"{prefix}: config_groups states several formats for its matrices; vLLM needs "
                "all of them in one"
            )
        return found[0]

    def head(self, prefix: str) -> Format | None:
        """Only what names it, or its own class."""
        return None if self.ignored.linear(prefix) else self.named(prefix) or self._of_class(_HEAD)

    def embedding(self) -> Format | None:
        """Of the class of the embedding, if a target names it."""
        return self._of_class(_EMBEDDING)

    def named(self, prefix: str) -> Format | None:
        """The format of the first target that names a module, not one that names its class."""
        found = self.patterns.first(prefix)
        indices = [self.patterned[found]] if found is not None else []
        if prefix in self.names:
            indices.append(self.names[prefix])
        return self.formats[min(indices)] if indices else None

    def _parts(self, prefix: str) -> Format | None:
        found: Sequence[Format | None] = [self.named(part) for part in self.fused.parts(prefix)]
        return found[0] if found and all(part is not None for part in found) else None

    def _of_class(self, name: str) -> Format | None:
        return self.formats[self.classes[name]] if name in self.classes else None


def groups_of(
    section: ConfigFile, targets: Iterable[Target], ignored: Ignored, fused: Names
) -> Groups:
    """The groups of these targets, in which each module is found in one step.

    Raises:
        ModelError: more patterns than are matched in little time.
    """
    given = tuple(targets)
    names: dict[str, int] = {}
    classes: dict[str, int] = {}
    patterned = []
    for index, target in enumerate(given):
        names.setdefault(target.name, index)
        for name in target.classes:
            classes.setdefault(name, index)
        if target.pattern is not None:
            patterned.append(index)
    try:
        patterns = Patterns(t.pattern for t in given if t.pattern is not None)
    except ExpressionError as error:
        section.fail("targets", f"its patterns {error}: at most {MAX_PATTERNS:,}")
    formats = tuple(target.format for target in given)
    return Groups(formats, names, classes, patterns, tuple(patterned), ignored, fused)


def read_target(section: ConfigFile, text: str, format: Format, names: Names) -> Target:
    """Read a target: a whole name, a pattern after `re:`, or a class.

    Source: vLLM 0.32, compressed_tensors/utils.py, `is_equal_or_regex_match`.

    Raises:
        ModelError: a pattern that may take long to match.
    """
    everything = {*CLASSES.values(), _EXPERTS, _HEAD, _EMBEDDING}
    pattern: Expression | None = None
    if text.startswith("re:"):
        try:
            pattern = read_expression(text[3:])
        except ExpressionError as error:
            section.fail("targets", f"the pattern {shown(text)} {error}")
        matched = Patterns([pattern])
        classes = frozenset(name for name in everything if matched.match(name))
    else:
        classes = frozenset(name for name in everything if text.lower() in name.lower())
        if "." in text and names.renames:
            text = names.of(text)
    if text == "Linear":
        classes |= {"Linear"}
    return Target(text, format, pattern, classes)
