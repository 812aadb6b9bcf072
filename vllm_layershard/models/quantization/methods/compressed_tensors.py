"""Reads what llm-compressor writes: groups of modules, each with a format."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vllm_layershard.models.quantization.choice import Nothing, Quantization
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.groups import groups_of, read_target
from vllm_layershard.models.quantization.ignored import read_ignored
from vllm_layershard.models.quantization.methods.compressed_group import format_of_group, unread
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.sources.config_file import ConfigFile

if TYPE_CHECKING:
    from vllm_layershard.models.quantization.transforms import Transforms

_MAX_TARGETS: Final = 1 << 16
_MAX_PATTERNS: Final = 256
"""Of the targets. Each is matched with the names of vLLM's classes; real configs have a few."""


def read_compressed_tensors(
    section: ConfigFile,
    names: Names,
    format_of: Callable[[ConfigFile, ConfigFile], Format] = format_of_group,
) -> Quantization:
    """Read a `quantization_config` of method compressed-tensors.

    `format_of`: what a host makes of the section and one of its groups.

    Source: vLLM 0.32, compressed_tensors.py, `CompressedTensorsConfig.from_config`.

    Raises:
        ModelError: values that make no sense, or that the planner does not know.
    """
    sparsity = section.section("sparsity_config")
    if sparsity is not None and sparsity.get("targets"):
        section.fail("sparsity_config", "vLLM 0.32 has no class for sparse weights any more")
    ignored = read_ignored(section, ("ignore",), "patterns", names)
    targets: dict[str, Format] = {}  # as vLLM's: of two groups with one target the last is read
    for group in _groups(section):
        targets |= dict.fromkeys(group.strings("targets"), format_of(section, group))
    if not targets:
        if section.get("kv_cache_scheme") is None:
            section.fail("config_groups", "states no linears, so no source states their bytes")
        return Quantization("compressed_tensors_cache", Nothing())
    patterns = sum(target.startswith("re:") for target in targets)
    if len(targets) > _MAX_TARGETS or patterns > _MAX_PATTERNS:
        section.fail(
            "config_groups",
            f"has more than {_MAX_TARGETS:,} targets, or {_MAX_PATTERNS} of them with a pattern",
        )
    read = (read_target(section, target, found, names) for target, found in targets.items())
    groups = groups_of(section, read, ignored, names)
    if groups.embedding() is not None:
        section.fail("config_groups", unread("quantised embeddings"))
    for embedding in ("model.embed_tokens", "language_model.model.embed_tokens"):
        if groups.named(embedding) is not None and not ignored.linear(embedding):
            section.fail("config_groups", unread("quantised embeddings"))
    known = {found.name for found in targets.values()}
    name = known.pop() if len(known) == 1 else "compressed_tensors_mixed"
    return Quantization(name, groups, _transforms(section, names))


def _transforms(section: ConfigFile, names: Names) -> Transforms | None:
    if section.get("transform_config") is None:
        return None
    from vllm_layershard.models.quantization.transforms import read_transforms  # few have any

    return read_transforms(section, names)


def _groups(section: ConfigFile) -> list[ConfigFile]:
    """Those of linears: groups of attention modules only describe the cache's scales."""
    groups = section.section("config_groups")
    found = []
    for name in groups.values if groups is not None else ():
        assert groups is not None, "it has names"
        group = groups.section(name)
        targets = group.strings("targets") if group is not None else ()
        if group is None or not targets:
            groups.fail(name, "names no targets")
        if not (len(targets) == 1 and targets[0].endswith("Attention")):
            found.append(group)
    return found
