"""Ignored: the modules that a checkpoint leaves unquantised, by the rules of its method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from vllm_layershard.errors import ModelError
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.sources.config_file import ConfigFile, shown

if TYPE_CHECKING:
    from vllm_layershard.models.matching.patterns import Patterns

Rule = Literal["exact", "inside", "patterns", "wildcards"]
"""How a name of the list is compared with a module's: equal to it; part of it; equal, or a regular
expression after `re:`; part of it, or a shell's wildcard."""

_MAX_NAMES: Final[dict[Rule, int]] = {
    "exact": 1 << 16,
    "inside": 2048,
    "patterns": 1 << 16,
    "wildcards": 2048,
}
"""Of a list. Some are looked for in every module; of those real lists have a few hundred names."""


_USUAL: Final = Names()


class Ignored(NamedTuple):
    """`key`: where the names stand in config.json, for the messages. `fused` are vLLM's names.

    `names` and `patterns` are compared with vLLM's names of modules: they are mapped to them.
    """

    key: str = "modules_to_not_convert"
    rule: Rule = "exact"
    names: frozenset[str] = frozenset()
    patterns: Patterns | None = None
    fused: Names = _USUAL

    def linear(self, prefix: str) -> bool:
        """Whether a linear is named, or all parts of a fused one.

        Source: vLLM 0.32, quantization/utils/quant_utils.py, `is_layer_skipped`, and
        compressed_tensors/utils.py, `should_ignore_layer`; modelopt.py, `is_layer_excluded`.

        Raises:
            ModelError: only some of a fused linear's parts are named.
        """
        parts = self.fused.parts(prefix)
        exact = self.rule in ("exact", "wildcards")
        if exact and "experts" in prefix and not parts and self._experts(prefix):
            return True
        if self.rule == "exact" and "experts" in prefix and not parts:
            return False
        if self._names(prefix):
            return True
        match = self.names.__contains__ if exact else self._names
        return bool(parts) and self._all(prefix, [match(part) for part in parts], parts)

    def experts(self, prefix: str) -> bool:
        """Whether the routed experts of a layer are named, by the first of them where each is.

        Raises:
            ModelError: only some of an expert's matrices are named.
        """
        if self.rule in ("exact", "wildcards") and self._experts(prefix):
            return True
        if self.rule == "exact":
            return False
        if self.rule != "patterns":
            return self._names(prefix)
        first = self.fused.first_expert(prefix)
        return self._all(prefix, [self._names(name) for name in first], first)

    def _all(self, prefix: str, named: Sequence[bool], parts: Sequence[str]) -> bool:
        if any(named) and not all(named):
            lasts = ", ".join(part.rpartition(".")[2] for part in parts)
            raise ModelError(
                f"{prefix}: {self.key} names some but not all of its parts ({lasts}); vLLM needs "
                "all of them in one precision"
            )
        return all(named)

    def _experts(self, prefix: str) -> bool:
        """vLLM looks for what it builds in the names of a checkpoint's single experts."""
        return any(prefix in name for name in self.names if "experts" in name)

    def _names(self, prefix: str) -> bool:
        return (
            prefix in self.names
            or (self.patterns is not None and self.patterns.match(prefix))
            or (self.rule in ("inside", "wildcards") and any(n in prefix for n in self.names))
        )


def read_ignored(
    section: ConfigFile, keys: Iterable[str], rule: Rule, fused: Names = _USUAL
) -> Ignored:
    """Read the first of `keys` that is not empty, and map its names to vLLM's.

    Raises:
        ModelError: no list of names, too many of them, or a pattern that may take long to match.
    """
    names: tuple[str, ...] = ()
    for key in keys:
        names = section.strings(key)
        if names:
            break
    if len(names) > _MAX_NAMES[rule]:
        section.fail(key, f"has {len(names):,} names; at most {_MAX_NAMES[rule]:,} are read")
    names = _mapped(names, rule, fused)
    texts: list[str] = []
    if rule == "patterns":
        texts = [name[3:] for name in names if name.startswith("re:")]
    elif rule == "wildcards":
        texts = [name for name in names if set(name) & set("*?[")]
    patterns = _patterns(section, key, texts, rule) if texts else None
    return Ignored(key=key, rule=rule, names=frozenset(names), patterns=patterns, fused=fused)


def _mapped(names: tuple[str, ...], rule: Rule, fused: Names) -> tuple[str, ...]:
    """Source: vLLM 0.32, `apply_vllm_mapper` of modelopt.py and of compressed_tensors.py."""
    if not fused.renames:
        return names
    if rule == "patterns":
        return tuple(
            fused.of(name) if "." in name and not name.startswith("re:") else name for name in names
        )
    if rule == "wildcards":  # a tree of modules: vLLM makes two names of it before it maps them
        trees = (name.endswith("*") and not name.endswith(".*") for name in names)
        names = tuple(
            part
            for name, tree in zip(names, trees, strict=True)
            for part in ((name[:-1], f"{name[:-1]}.*") if tree and len(name) > 1 else (name,))
        )
    return tuple(map(fused.of, names))


def _patterns(section: ConfigFile, key: str, texts: Iterable[str], rule: Rule) -> Patterns:
    # Most configs have none, and what reads them takes a while to import.
    from vllm_layershard.models.matching.expression import Expression, ExpressionError
    from vllm_layershard.models.matching.patterns import MAX_PATTERNS, MAX_PLACES, Patterns
    from vllm_layershard.models.matching.regular import read_expression
    from vllm_layershard.models.matching.wildcard import read_wildcard

    read = read_expression if rule == "patterns" else read_wildcard

    def expression(text: str) -> Expression:
        try:
            return read(text)
        except ExpressionError as error:
            section.fail(key, f"the pattern {shown(text)} {error}")

    try:
        return Patterns(map(expression, texts))
    except ExpressionError as error:
        section.fail(key, f"its patterns {error}: {MAX_PATTERNS:,} of {MAX_PLACES:,} characters")
