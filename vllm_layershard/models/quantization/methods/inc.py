"""Reads what Intel's auto-round and Neural Compressor write: methods auto-round and inc."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, NoReturn

from vllm_layershard.errors import ModelError
from vllm_layershard.models.matching.expression import ExpressionError
from vllm_layershard.models.matching.patterns import MAX_PATTERNS, Patterns
from vllm_layershard.models.matching.regular import read_expression
from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.formats.fp8_block import Fp8Block
from vllm_layershard.models.quantization.formats.microscaled import Microscaled
from vllm_layershard.models.quantization.formats.split import Split
from vllm_layershard.models.quantization.methods.awq import Awq
from vllm_layershard.models.quantization.methods.fp8 import read_block
from vllm_layershard.models.quantization.methods.gptq import Gptq
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.quantization.served.inc import BACKENDS, FIXED, FORMATS
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_SPECIAL: Final = frozenset("*+?^$()[]{}|\\")
"""What makes a regular expression of a name."""

_NO_EXPERTS: Final = "vLLM 0.32 has no class for routed experts in auto-round's fp8 blocks"
"""Source: vLLM 0.32, inc/schemes/inc_scheme.py, `get_moe_method`, which the fp8 scheme leaves."""

_MAX_EXTRA: Final = 1 << 16
_KEPT: Final = 16
"""From so many bits on a module is not quantised."""


class Own(NamedTuple):
    """What a config states of single modules: `formats` by name, None unquantised.

    `patterned` are those of the patterns. `places` has each name's index.
    """

    formats: Mapping[str, tuple[Format | None, Format | None]]
    places: Mapping[str, int]
    patterns: Patterns
    patterned: tuple[tuple[Format | None, Format | None], ...]
    """Of a module that is quantised otherwise, and of one that is not."""

    def of(self, name: str, quantised: bool) -> tuple[bool, Format | None]:
        """Whether a name is stated, as it is or by a pattern, and its format."""
        found = self.formats.get(name)
        if found is None:
            first = self.patterns.first(name)
            found = self.patterned[first] if first is not None else None
        return (False, None) if found is None else (True, found[0] if quantised else found[1])


class Rounded(NamedTuple):
    """One format for all within `blocks`, or for all but the head, and what single modules have.

    Source: vLLM 0.32, quantization/inc/inc.py, `INCConfig.get_quant_method`, and
    inc/config_parser.py, `INCConfigParser._resolve_raw`.
    """

    default: Format
    blocks: tuple[str, ...]
    own: Own
    names: Names

    def linear(self, prefix: str) -> Format | None:
        """As it is stated, or for its parts, or as all are.

        Raises:
            ModelError: its parts have several formats.
        """
        return self._of(prefix, quantised=True)

    def experts(self, prefix: str) -> Format | None:
        """As of a linear: what is stated of single experts vLLM does not look at."""
        return self._of(prefix, quantised=True)

    def head(self, prefix: str) -> Format | None:
        """None where it is not stated, nor within the blocks."""
        return self._of(prefix, quantised=False)

    def _of(self, prefix: str, *, quantised: bool) -> Format | None:
        above = self.own.formats.get(f"model.{prefix}")
        if above is not None and above[1] is None:
            return None
        for name in (prefix, *self._suffixes(prefix)):
            if name in self.own.formats:
                return self.own.of(name, quantised=True)[1]
        if self.blocks:
            quantised = prefix.startswith(self.blocks)
        default = self.default if quantised else None
        for last, parts in self.names.fused.items():
            if prefix.count(last) != 1:
                continue
            found = [self.own.of(prefix.replace(last, part), quantised) for part in parts]
            if not any(stated for stated, _ in found):
                continue
            formats = [one if stated else default for stated, one in found]
            if any(one != formats[0] for one in formats):
                raise ModelError(
                    f"{prefix}: extra_config states several formats for its parts "
                    f"({', '.join(parts)}); vLLM needs all of them in one precision"
                )
            return formats[0]
        stated, own = self.own.of(prefix, quantised)
        return own if stated else default

    def _suffixes(self, prefix: str) -> list[str]:
        """The names that stand at its end, in the order of the config."""
        found = [name for name in _ends(prefix) if name in self.own.places]
        return sorted(found, key=self.own.places.__getitem__)


def _ends(name: str) -> Iterator[str]:
    while "." in name:
        name = name.partition(".")[2]
        yield name


def read_inc(section: ConfigFile, names: Names) -> Quantization:
    """Read a `quantization_config` of method auto-round or inc.

    Raises:
        ModelError: values that make no sense, or that vLLM or the planner does not know.
    """
    default = _format(section, section)
    if default is None:
        section.fail("bits", "vLLM 0.32 has no class for sixteen bits and more")
    _check_stated(section)
    key = "block_name_to_quantize" if section.get("block_name_to_quantize") else _BLOCKS
    value = section.get(key)
    blocks = tuple(value.split(",")) if isinstance(value, str) else section.strings(key)
    own = _own(section, names)
    every = [default, *(one[0] for one in (*own.formats.values(), *own.patterned))]
    several = len({one.name for one in every if one is not None}) > 1
    mapped = tuple(map(names.of, blocks)) if names.renames else blocks
    return Quantization(
        "inc_mixed" if several else f"inc_{default.name.removeprefix('inc_')}",
        Rounded(default, mapped, own, names),
    )


_BLOCKS: Final = "to_quant_block_names"


def _check_stated(section: ConfigFile) -> None:
    """Refuse activations, a packing or a backend that vLLM's class does not take.

    Source: vLLM 0.32, inc/inc.py, `INCConfig.from_config`.

    Raises:
        ModelError: names the key and what it may say.
    """
    values = section.values
    key = next((key for key in ("backend", "vllm_backend") if key in values), "backend")
    stated = section.string("data_type") or "int"
    kind = "fp" if stated == "fp8" else "mx_fp" if "mx_fp" in stated else stated
    backends = ("auto",) if kind in _WHOLE else BACKENDS
    if values.get(key, "auto") not in backends:
        _refuse(section, key, backends)
    if values.get("packing_format") not in (None, *FORMATS):
        _refuse(section, "packing_format", FORMATS)
    expected: dict[str, Any] = {}
    for fixed in FIXED:
        if fixed.data_type == kind and fixed.bits in (None, values.get("bits")):
            expected |= fixed.values
    if kind == "fp":
        expected["act_group_size"] = section.values["group_size"][0]
    for name, value in expected.items():
        if values.get(name, value) not in (value, _UNSAID.get(name, value)):
            _refuse(section, name, (value,))


def _refuse(section: ConfigFile, key: str, known: Sequence[Any]) -> NoReturn:
    said = ", ".join(shown(value) for value in known)
    section.fail(key, f"{shown(section.values.get(key))}: vLLM 0.32 takes {said} here")


_UNSAID: Final = {"packing_format": None}
"""A null that is as if the key were absent; vLLM takes no other for it."""

_WHOLE: Final = frozenset(fixed.data_type for fixed in FIXED)
"""Types of data that only the backend `auto` takes."""


def _own(section: ConfigFile, names: Names) -> Own:
    extra = section.section("extra_config") or ConfigFile(section.where, {})
    if len(extra.values) > _MAX_EXTRA:
        section.fail("extra_config", f"has more than {_MAX_EXTRA:,} names")
    formats: dict[str, tuple[Format | None, Format | None]] = {}
    expressions, patterned = [], []
    for text in extra.values:
        rule = extra.section(text) or ConfigFile(extra.where, {})
        kept = None if rule.get("bits") is None else _format(section, rule)
        pair = (_format(section, rule), kept)
        name = names.of(text) if names.renames else text
        formats[name] = pair
        if set(name) & _SPECIAL:
            try:
                unanchored = name[1:] if name.startswith("^") else f".*{name}"
                expressions.append(read_expression(unanchored))
            except ExpressionError as error:
                extra.fail(text[:60], f"the pattern {error}")
            patterned.append(pair)
    try:
        patterns = Patterns(expressions)
    except ExpressionError as error:
        section.fail("extra_config", f"its patterns {error}: at most {MAX_PATTERNS:,}")
    places = {name: index for index, name in enumerate(formats)}
    return Own(formats, places, patterns, tuple(patterned))


def _format(section: ConfigFile, rule: ConfigFile) -> Format | None:
    """What a rule changes of bits, group and symmetry; None: it is not quantised.

    Source: vLLM 0.32, inc/inc.py, `INCConfig.from_config`, and inc/schemes/factory.py.
    """
    changed = {key: rule.values[key] for key in ("bits", "group_size", "sym") if key in rule.values}
    merged = ConfigFile(rule.where, {**section.values, **changed})
    bits = merged.integer("bits", high=64)
    if bits >= _KEPT:
        return None
    kind = merged.string("data_type") or "int"
    symmetric = merged.get("sym") is not False
    fail = partial(merged.fail, "data_type")
    if kind in ("fp", "fp8"):
        if bits != 8 or not symmetric or not isinstance(merged.get("group_size"), list):
            fail("vLLM 0.32 has a class for symmetric fp8 in blocks only")
        return Split(Fp8Block(read_block(merged, "group_size")), _NO_EXPERTS)
    if "mx_fp" in kind:
        if bits not in (4, 8) or merged.get("group_size") != 32 or not symmetric:
            fail("vLLM 0.32 has a class for mxfp4 and mxfp8, symmetric, in groups of 32 only")
        return Microscaled(f"inc_mxfp{bits}", bits, "weight_packed" if bits == 4 else "weight")
    if kind != "int":
        fail(f"{shown(kind)}: vLLM 0.32 has no class for it; it takes int, fp and mx_fp")
    return _integers(merged, bits, symmetric=symmetric)


def _integers(merged: ConfigFile, bits: int, *, symmetric: bool) -> Format:
    packing = merged.string("packing_format") or "auto_round:auto_gptq"
    backend: Any = merged.get("backend") or merged.string("vllm_backend") or "auto"
    if packing not in ("auto_round:auto_gptq", "auto_round:auto_awq"):
        merged.fail("packing_format", f"{shown(packing)}: vLLM 0.32 has no class for it")
    if bits in (2, 3, 5, 6, 7):
        merged.fail(
            "bits",
            f"{bits}: vLLM 0.32 has a class for it (humming), and the planner does not read it yet",
        )
    group = None if merged.get("group_size") == -1 else merged.integer("group_size", low=16)
    if "gptq" in packing or "gptq" in str(backend):
        if not symmetric or bits not in (4, 8):
            merged.fail("sym", "vLLM 0.32 has a class for gptq's packing with symmetric 4 and 8")
        if backend != "auto" and "marlin" not in str(backend):
            merged.fail("backend", f"{shown(backend)}: vLLM 0.32 has gptq's packing on Marlin only")
        return Gptq(bits, group)
    if bits != 4:
        merged.fail("bits", "vLLM 0.32 has a class for awq's packing with 4 bits only")
    return Awq(group)
