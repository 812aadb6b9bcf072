"""ByLayer: a checkpoint that states an algorithm for each of its modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from vllm_layershard.errors import ModelError
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.ignored import Ignored
from vllm_layershard.models.quantization.names import Names

_FUSED: Final[Mapping[str, tuple[str, ...]]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""What vLLM takes apart whether the class fuses it or not."""


class ByLayer(NamedTuple):
    """`algorithms`: a module, in vLLM's name of it, -> what it is quantised with.

    `linears` and `experts`: what an algorithm is for each of the two. What is not named is not
    quantised. `above`: the algorithm of the first module within each.
    Source: vLLM 0.32, quantization/modelopt.py, `ModelOptMixedPrecisionConfig`.
    """

    algorithms: Mapping[str, str]
    linears: Mapping[str, Format]
    experts_of: Mapping[str, Format]
    names: Names
    ignored: Ignored
    above: Mapping[str, str]

    def linear(self, prefix: str) -> Format | None:
        """The format of the algorithm that is stated for it, or for all its parts.

        Raises:
            ModelError: its parts have several, or one that vLLM has for experts only.
        """
        if self.ignored.linear(prefix):
            return None
        return self._format(prefix, self.linears)

    def experts(self, prefix: str) -> Format | None:
        """The format of the algorithm that is stated for the first of them.

        Raises:
            ModelError: an algorithm that vLLM has for linears only.
        """
        if self.ignored.experts(prefix):
            return None
        return self._format(prefix, self.experts_of)

    def head(self, prefix: str) -> Format | None:
        """As of a linear."""
        return self.linear(prefix)

    def _format(self, prefix: str, formats: Mapping[str, Format]) -> Format | None:
        algorithm = self._algorithm(prefix)
        if algorithm is None:
            return None
        if algorithm not in formats:
            raise ModelError(
                f"{prefix}: quantized_layers states {algorithm} for it, which vLLM 0.32 has for "
                f"{'experts' if formats is self.linears else 'linears'} only"
            )
        return formats[algorithm]

    def _algorithm(self, prefix: str) -> str | None:
        """Of the module, of its parts, of the first module within it, of the experts' sisters.

        Source: vLLM 0.32, `ModelOptMixedPrecisionConfig._resolve_quant_algo`.
        """
        names = (prefix, *_other_names(prefix))
        stem, _, last = prefix.rpartition(".")
        stems = (stem, *_other_names(stem))
        parts = [f"{s}.{part}" for s in stems for part in self.names.fused.get(last, ())]
        fused = [f"{s}.{part}" for s in stems for part in _FUSED.get(last, ())]
        return (
            next((self.algorithms[name] for name in names if name in self.algorithms), None)
            or self._common(prefix, parts)
            or next((self.above[name] for name in names if name in self.above), None)
            or (self.above.get(stem) if last == "experts" else None)
            or self._common(prefix, fused)
        )

    def _common(self, prefix: str, parts: Sequence[str]) -> str | None:
        found = {self.algorithms[part] for part in parts if part in self.algorithms}
        if len(found) > 1:
            raise ModelError(
                f"{prefix}: quantized_layers states several algorithms for its parts "
                f"({', '.join(sorted(found))}); vLLM needs all of them in one precision"
            )
        return next(iter(found), None)


def by_layer(
    algorithms: Mapping[str, str],
    linears: Mapping[str, Format],
    experts_of: Mapping[str, Format],
    names: Names,
    ignored: Ignored,
) -> ByLayer:
    """With what stands within each module, found once."""
    above: dict[str, str] = {}
    for name, algorithm in algorithms.items():
        while name := name.rpartition(".")[0]:
            above.setdefault(name, algorithm)
    return ByLayer(algorithms, linears, experts_of, names, ignored, above)


def _other_names(prefix: str) -> Iterator[str]:
    """What the checkpoint may call it, beside vLLM's name."""
    if prefix.endswith(".lm_head"):
        yield "lm_head"
    for ours, theirs in (_WRAPPED, _WRAPPED[::-1]):
        if prefix.startswith(ours):
            yield theirs + prefix.removeprefix(ours)


_WRAPPED: Final = ("language_model.model.", "model.language_model.")
