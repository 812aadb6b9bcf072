"""Transforms: the matrices by which compressed-tensors turns activations while a server runs.

Those that are folded into the weights take nothing at run time, and are none of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from vllm_layershard.errors import ModelError, PlanError
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.matching.expression import Expression, ExpressionError
from vllm_layershard.models.matching.patterns import Patterns
from vllm_layershard.models.matching.regular import read_expression
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.shape import Shape
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_FOLDED: Final = ("weight_input", "weight_output")
_ONLINE: Final = ("input", "output", "k_cache", "q_attn")
_ALL: Final = frozenset({"Linear", "LinearBase"})
_SOME: Final = frozenset(
    {
        *("ColumnParallelLinear", "MergedColumnParallelLinear", "QKVParallelLinear"),
        *("ReplicatedLinear", "RowParallelLinear"),
    }
)
_MAX_RULES: Final = 256


class Named(NamedTuple):
    """Modules by their names, by patterns, or all linears."""

    names: frozenset[str]
    patterns: Patterns

    def has(self, name: str) -> bool:
        """Source: compressed_tensors/utils/match.py, `is_match`."""
        return bool(self.names & _ALL) or name in self.names or self.patterns.match(name)


class Rule(NamedTuple):
    """Where one matrix turns what: `scheme` is its name, `side` its own size, if it has one."""

    scheme: str
    side: int | None
    location: str
    targets: Named
    ignored: Named

    def is_for(self, name: str) -> bool:
        """Whether it turns what goes into a module, or comes out of it."""
        return self.targets.has(name) and not self.ignored.has(name)


class Transforms(NamedTuple):
    """The rules in the order of the config: of two for the same the later counts.

    Source: vLLM 0.32, compressed_tensors/transform/linear.py and module.py.
    """

    rules: tuple[Rule, ...]
    names: Names
    where: str

    def nbytes(self, linears: Iterable[tuple[str, Shape]], dtype: str, tp: int) -> int:
        """Bytes of all matrices of some linears; those of one scheme and size are one.

        Raises:
            PlanError: tensor parallelism.
            ModelError: what vLLM refuses of a linear.
        """
        sides = {key for prefix, shape in linears for key in self._sides(prefix, shape)}
        if sides and tp > 1:
            raise PlanError(
                f"tp = {tp}: vLLM 0.32 refuses transforms of activations under tensor parallelism "
                f"({self.where}); use tp 1"
            )
        return sum(side * side for _, side in sides) * DTYPE_BYTES[dtype]

    def _sides(self, prefix: str, shape: Shape) -> Iterator[tuple[str, int]]:
        if not shape.quantisable:
            return
        parts = self.names.parts(prefix) or (prefix,)
        into: dict[int, Rule] = {}
        out: dict[int, Rule] = {}
        for rule in self.rules:
            for index, part in enumerate(parts):
                if rule.is_for(part):
                    if rule.location not in ("input", "output"):
                        raise self._refused(prefix, f"refuses a transform of {rule.location} there")
                    (into if rule.location == "input" else out)[index] = rule
        if (into or out) and shape.bias:
            raise self._refused(prefix, "has no transform of a linear with a bias")
        if into and (len(into) < len(shape.outs) or any(r is not into[0] for r in into.values())):
            raise self._refused(prefix, "needs the same transform of the input for all its parts")
        if len({rule.scheme for rule in out.values()}) > 1:
            raise self._refused(prefix, "needs one scheme for the outputs of its parts")
        if out and len(parts) != len(shape.outs):
            raise self._refused(prefix, "has no transform of the output of such parts")
        for rule in into.values():
            yield rule.scheme, rule.side or shape.inner
        for index, rule in out.items():
            yield rule.scheme, rule.side or shape.outs[index]

    def _refused(self, prefix: str, what: str) -> ModelError:
        return ModelError(f"{self.where}: {prefix}: vLLM 0.32 {what}; correct the targets")


def read_transforms(section: ConfigFile, names: Names) -> Transforms | None:
    """The transforms that are left for run time; None where all are folded into the weights.

    Raises:
        ModelError: values that make no sense, or targets that are some classes of linears only.
    """
    groups = (section.section("transform_config") or section).section("config_groups")
    rules: list[Rule] = []
    for name in groups.values if groups is not None else ():
        scheme = groups.section(name) if groups is not None else None
        apply = scheme.get("apply") if scheme is not None else None
        if scheme is None or not isinstance(apply, list):
            section.fail("transform_config", f"{shown(name)}: apply is not a list")
        side = scheme.optional_integer("head_dim")
        for each in apply:
            if not isinstance(each, dict):
                scheme.fail("apply", f"{shown(each)} is not an object")
            one = ConfigFile(f"{scheme.where}: apply", each)
            location = one.string("location")
            if location in _FOLDED:
                continue
            if location not in _ONLINE:
                one.fail("location", f"{shown(location)}: vLLM 0.32 knows no such place")
            rules.append(Rule(name, side, location, _named(one, "targets"), _named(one, "ignore")))
    if len(rules) > _MAX_RULES:
        section.fail("transform_config", f"has {len(rules):,} rules; {_MAX_RULES} are read")
    where = f"{section.where}: transform_config"
    return Transforms(tuple(rules), names, where) if rules else None


def _named(section: ConfigFile, key: str) -> Named:
    value = section.get(key)
    texts = (value,) if isinstance(value, str) else section.strings(key)
    expressions: list[Expression] = []
    try:
        expressions.extend(read_expression(t[3:]) for t in texts if t.startswith("re:"))
        patterns = Patterns(expressions)
    except ExpressionError as error:
        section.fail(key, f"a pattern {error}")
    names = frozenset(text for text in texts if not text.startswith("re:"))
    if names & _SOME:
        section.fail(key, "some of vLLM's classes of linears are not supported, all ('Linear') are")
    return Named(names, patterns)
