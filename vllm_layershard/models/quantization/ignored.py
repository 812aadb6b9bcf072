"""Ignored: the modules that a checkpoint leaves unquantised, by the rules of its method."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from typing import Final, Literal, NamedTuple

from vllm_layershard.errors import ModelError
from vllm_layershard.models.quantization.method import FUSED
from vllm_layershard.models.sources.config_file import ConfigFile

Rule = Literal["exact", "inside", "patterns", "wildcards"]
"""How a name of the list is compared with a module's: equal to it; part of it; equal, or a regular
expression after `re:`; part of it, or a shell's wildcard."""

_MAX_NAMES: Final = 2048
"""Of a list whose every name is looked for in every module; real ones have a few hundred."""
_MAX_PATTERN: Final = 512
_MAX_REPEATS: Final = 6
"""More repetitions than any real pattern has: each multiplies the time that a match may take."""


class Ignored(NamedTuple):
    """`key`: where the names stand in config.json, for the messages."""

    key: str = "modules_to_not_convert"
    rule: Rule = "exact"
    names: frozenset[str] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = ()

    def linear(self, prefix: str) -> bool:
        """Whether a linear is named, or all parts of a fused one.

        Source: vLLM 0.32, quantization/utils/quant_utils.py, `is_layer_skipped`, and
        compressed_tensors/utils.py, `should_ignore_layer`; modelopt.py, `is_layer_excluded`.

        Raises:
            ModelError: only some of a fused linear's parts are named.
        """
        if self.rule == "exact" and "experts" in prefix and prefix.rpartition(".")[2] not in FUSED:
            return self._experts(prefix)
        if self._names(prefix):
            return True
        stem, _, last = prefix.rpartition(".")
        if last not in FUSED:
            return False
        match = self.names.__contains__ if self.rule == "wildcards" else self._names
        parts = [match(f"{stem}.{part}") for part in FUSED[last]]
        if any(parts) and not all(parts):
            raise ModelError(
                f"{prefix}: {self.key} names some but not all of its parts "
                f"({', '.join(FUSED[last])}); vLLM needs all of them in one precision"
            )
        return all(parts)

    def experts(self, prefix: str) -> bool:
        """Whether the routed experts of a layer are named, by the first of them where each is."""
        if self.rule == "exact":
            return self._experts(prefix)
        return self._names(f"{prefix}.0.gate_proj" if self.rule == "patterns" else prefix)

    def _experts(self, prefix: str) -> bool:
        """vLLM looks for what it builds in the names of a checkpoint's single experts."""
        return any(prefix in name for name in self.names if "experts" in name)

    def _names(self, prefix: str) -> bool:
        return (
            prefix in self.names
            or any(pattern.match(prefix) for pattern in self.patterns)
            or (self.rule in ("inside", "wildcards") and any(n in prefix for n in self.names))
        )


def read_ignored(section: ConfigFile, keys: Iterable[str], rule: Rule) -> Ignored:
    """Read the first of `keys` that is not empty.

    Raises:
        ModelError: no list of names, too many of them, or a pattern that may take long to match.
    """
    names: tuple[str, ...] = ()
    for key in keys:
        names = section.strings(key)
        if names:
            break
    if rule in ("inside", "wildcards") and len(names) > _MAX_NAMES:
        section.fail(key, f"has {len(names):,} names; at most {_MAX_NAMES:,} are read")
    patterns: tuple[str, ...] = ()
    if rule == "patterns":
        patterns = tuple(name[3:] for name in names if name.startswith("re:"))
        for pattern in patterns:
            _check_pattern(section, key, pattern)
    elif rule == "wildcards":
        patterns = tuple(translate(name) for name in names if set(name) & set("*?["))
    return Ignored(
        key=key,
        rule=rule,
        names=frozenset(names),
        patterns=tuple(_compiled(section, key, pattern) for pattern in patterns),
    )


def _check_pattern(section: ConfigFile, key: str, text: str) -> None:
    repeats = len(re.findall(r"[*+{]", text))
    if len(text) > _MAX_PATTERN or repeats > _MAX_REPEATS or re.search(r"\)[*+{?]", text):
        section.fail(key, "holds a pattern that is too long or repeats too much to be matched")


def _compiled(section: ConfigFile, key: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError):
        section.fail(key, f"holds {text[:60]!r}, which is not a regular expression")
