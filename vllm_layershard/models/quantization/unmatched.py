"""What a quantisation section names and a model does not have.

A section that quantises nothing of a model is refused: its weights may be quantised all the same. A
single name that matches nothing is a note, unless it is of a part that is not planned by linears.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, Literal, NamedTuple, NoReturn

from vllm_layershard.models.quantization.groups import class_of
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.quantization.read import method_of
from vllm_layershard.models.sources.config_file import ConfigFile, shown

Rule = Literal["equal", "inside", "contains", "pattern", "wildcard", "tree", "ends"]
"""How a name is compared with a module's: the same; part of it; what has it as a part; the same, or
an expression after `re:`; part of it, or a wildcard; the same, or above or below it; the same, its
end, or an expression of a part of it."""

_MAX_SHOWN: Final = 3
_MAX_TRIED: Final = 64
"""Names that are compared with every module; of those real lists have a few dozen."""

_ELSEWHERE: Final = re.compile(
    r"lm_head|(?<![a-z])output|embed|wte|norm|router|score|classifier|pooler|bias|indexer|rotary|inv_freq"
    r"|visi|visual|vit\b|image|audio|video|speech|tower|projector|merger|mm_|patch"
    r"|mtp|nextn|eh_proj|shared_head|draft|eagle|medusa|proj_out|default"
    r"|conv|mixer|mamba|ssm|a_log|dt_|kv_cache|[kv]_scale|(?<![a-z])gate(?![a-z_])"
)
"""Parts that a server leaves unquantised, builds without linears, or does not build at all: heads,
embeddings, norms, routers, towers, draft layers, states."""


_CLASSES: Final = (
    "columnparallellinear mergedcolumnparallellinear qkvparallellinear replicatedlinear "
    "rowparallellinear gatelinear deepseekv2fusedqkvaprojlinear routedexperts parallellmhead"
)
"""vLLM's classes of linears, of experts and of the head, in small letters: a target may be a part
of such a name."""


class Entry(NamedTuple):
    """A name of a section as it stands there, and as vLLM maps it; `key` is that of its list."""

    key: str
    text: str
    mapped: str
    rule: Rule


def refuse_unquantised(section: ConfigFile, names: Names, modules: Iterable[str]) -> NoReturn:
    """Refuse a section that quantises no linear, no routed expert and no head of these modules.

    Raises:
        ModelError: says what it names, what the model's modules are called, and the remedy.
    """
    by_key: dict[str, list[str]] = {}
    modules = tuple(modules)
    classes = {name.lower() for name in map(class_of, modules) if name is not None}
    for entry in _entries(section, names, lambda text: any(text in name for name in classes)):
        by_key.setdefault(entry.key, []).append(entry.text)
    stated = "; ".join(f"{key}: {_listed(texts)}" for key, texts in by_key.items())
    known = [name for name in islice(_with_parts(names, modules), 1 << 10) if "_proj" in name]
    section.fail(
        next(iter(by_key), "quant_method"),
        "every linear, every routed expert and the head of this model stay unquantised with it "
        f"({stated or 'it names nothing'}); the model's modules are called "
        f"{', '.join(known[:4])} and so on; correct the names, or take the section out if the "
        "weights are not quantised",
    )


def unmatched_notes(
    section: ConfigFile, names: Names, modules: Iterable[str], num_layers: int
) -> tuple[str, ...]:
    """A note for each list in which a name matches none of these modules of so many layers."""
    odd: dict[str, list[str]] = {}
    known: Modules | None = None
    tried = 0
    alike: dict[str, bool] = {}  # lists say the same of each layer
    for entry in _entries(section, names, lambda text: text in _CLASSES):
        stem, _, rest = entry.text.partition("layers.")
        number, _, rest = rest.partition(".")
        plain = number.isdecimal() and len(number) < 10
        if plain and int(number) >= num_layers:
            continue
        kind = f"{stem}layers.0.{rest}" if plain else entry.text
        if kind not in alike:
            alike[kind] = _is_elsewhere(kind, num_layers)
        if alike[kind]:
            continue
        known = known or Modules.of(_with_parts(names, modules))
        if known.has(entry):
            continue
        tried += entry.rule not in ("equal", "tree")
        if tried > _MAX_TRIED:
            break
        if not _matches(entry, known.names):
            odd.setdefault(entry.key, []).append(entry.text)
    return tuple(
        f"{section.where}: {key}: {_listed(texts)}: no linear and no routed expert of this model "
        "is called so, and nothing is left out or quantised by it"
        for key, texts in odd.items()
    )


class Modules(NamedTuple):
    """The names of a model's modules, and of all that they lie within."""

    names: frozenset[str]
    above: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str]) -> Modules:
        """With what lies above, found once."""
        known = frozenset(names)
        return cls(known, frozenset(above for name in known for above in _above(name)))

    def has(self, entry: Entry) -> bool:
        """Whether it is one of them or, where that counts, above or below one."""
        if entry.mapped in self.names:
            return True
        if entry.rule in ("equal", "ends"):
            return any(above in self.names for above in _above(entry.mapped, "experts"))
        if entry.rule != "tree":
            return False
        return any(
            other in self.names
            or other in self.above
            or any(above in self.names for above in _above(other))
            for other in (entry.mapped, *_other_names(entry.mapped))
        )


def _above(name: str, last: str = "") -> Iterator[str]:
    """What a module lies within, from the nearest on; only what ends with `last`."""
    while name := name.rpartition(".")[0]:
        if name.endswith(last):
            yield name


def _listed(texts: list[str]) -> str:
    more = len(texts) - _MAX_SHOWN
    listed = ", ".join(map(shown, texts[:_MAX_SHOWN]))
    return f"{listed} and {more} more" if more > 0 else listed


def _is_elsewhere(text: str, num_layers: int) -> bool:
    """Whether it speaks of what is not planned by linears; of a layer after the last, too."""
    plain = text.removeprefix("re:").lower()
    numbers = re.findall(r"layers\W+(\d{1,9})" if "expert" in plain else r"\b\d{1,9}\b", plain)
    return _ELSEWHERE.search(plain) is not None or any(int(n) >= num_layers for n in numbers)


def _with_parts(names: Names, modules: Iterable[str]) -> Iterator[str]:
    """vLLM's names of linears and experts, and a checkpoint's of their parts."""
    for prefix in modules:
        yield prefix
        yield from names.parts(prefix)
        if prefix.endswith(".experts"):
            yield from names.first_expert(prefix)


def _entries(section: ConfigFile, names: Names, is_class: Callable[[str], bool]) -> Iterator[Entry]:
    """Every name in the lists that vLLM's class of the method reads, but for targets of classes.

    `is_class` is told a target in small letters.
    """
    method = method_of(section)
    inner = section.section("quantization") or section
    lists: dict[str, tuple[ConfigFile, tuple[tuple[str, Rule], ...]]] = {
        "fp8": (section, (("ignored_layers", "equal"), ("modules_to_not_convert", "equal"))),
        "compressed-tensors": (section, (("ignore", "pattern"),)),
        "quark": (section, (("exclude", "pattern"), ("layer_quant_config", "contains"))),
        "modelopt": (
            inner,
            (("ignore", "wildcard"), ("exclude_modules", "wildcard"), ("quantized_layers", "tree")),
        ),
        "fbgemm_fp8": (section, (("modules_to_not_convert", "equal"),)),
        "mxfp8": (section, (("ignored_layers", "wildcard"),)),
        "auto-round": (section, (("extra_config", "ends"),)),
        "inc": (section, (("extra_config", "ends"),)),
        "awq": (section, (("modules_to_not_convert", "inside"),)),
        "gptq": (section, (("dynamic", "pattern"), ("modules_in_block_to_quantize", "inside"))),
    }
    place, keys = lists.get(method, (section, ()))
    groups = section.section("config_groups") if method == "compressed-tensors" else None
    for name in groups.values if groups is not None else ():
        group = groups.section(name) if groups is not None else None
        for text in group.strings("targets") if group is not None else ():
            if not text.endswith("Attention") and not is_class(text.lower()):
                yield Entry("config_groups: targets", text, _mapped(text, names), "pattern")
    for key, rule in keys:
        for text in _texts(place.get(key)):
            plain = f"re:{text[2:] if text[:2] in ('+:', '-:') else text}"
            mapped = plain if key == "dynamic" else _mapped(text, names)
            yield Entry(key, text, mapped, rule)


def _texts(value: object) -> Iterator[str]:
    """The names of a list, of lists in a list, or the keys of an object."""
    for item in value if isinstance(value, (list, dict)) else ():
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            yield from _texts(item)


def _mapped(text: str, names: Names) -> str:
    return names.of(text) if names.renames and not text.startswith("re:") else text


def _matches(entry: Entry, known: Iterable[str]) -> bool:
    """Whether it is a part, a wildcard or an expression of any of these modules."""
    text, rule = entry.mapped, entry.rule
    if rule == "inside":
        return any(text in name for name in known)
    if rule == "contains" and "*" not in text:
        return any(name in text for name in known)
    if rule == "wildcard" and any(text.removesuffix("*") in name for name in known):
        return True
    if rule == "pattern" and not text.startswith("re:"):
        return False
    if rule in ("equal", "tree"):
        return False
    if rule == "ends" and not set(text) & set("*+?^$()[]{}|\\"):
        return any(name.endswith(f".{text}") for name in known)

    from vllm_layershard.models.matching.patterns import Patterns
    from vllm_layershard.models.matching.regular import read_expression
    from vllm_layershard.models.matching.wildcard import read_wildcard

    if rule == "ends":
        read = read_expression(text[1:] if text.startswith("^") else f".*{text}")
    else:
        read = read_expression(text[3:]) if rule == "pattern" else read_wildcard(text)
    return any(map(Patterns([read]).match, known))


def _other_names(text: str) -> Iterator[str]:
    """What a language model within another is called, both ways."""
    pairs = ("language_model.model.", "model.language_model.")
    for ours, theirs in (pairs, pairs[::-1]):
        if text.startswith(ours):
            yield theirs + text.removeprefix(ours)
