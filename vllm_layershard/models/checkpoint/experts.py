"""Holds what the config says of the routed experts of each layer against what the files store.

Files store a matrix of an expert, or all of a layer in one tensor; both hold the same weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Final, NamedTuple

from vllm_layershard.models.blueprint import Blueprint
from vllm_layershard.models.checkpoint.comparison import Disagreement
from vllm_layershard.models.checkpoint.files import Checkpoint
from vllm_layershard.models.checkpoint.safetensors import Stored
from vllm_layershard.models.checkpoint.strays import strays_beside
from vllm_layershard.models.checkpoint.transforms import STEMS
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.layer_weights import layer_experts
from vllm_layershard.plan import ParallelLayout, TensorSpec

_WHOLE: Final = Deployment(ParallelLayout())
_EXPERT: Final = re.compile(r"(.*?\.|)layers\.(\d{1,9})\.(?:.+?\.)?experts\.(.+)")
_ONE: Final = re.compile(r"\d+\.(?:gate_proj|up_proj|down_proj|w1|w2|w3)\.(\w+)")
"""What follows `experts.` in the name of one matrix of one expert, and its leaf."""

_PACKS: Final = ("weight", "qweight", "weight_packed")
_STACKED: Final = re.compile(
    r"(?:\d+\.)?(?:gate_up_proj|gate_proj|up_proj|down_proj|w1|w2|w3|w13)"
    r"(?:[._](?:weight|qweight|weight_packed|blocks))?"
)
"""The same of a tensor that holds a matrix of all experts, or two matrices of one."""

_SCALES: Final = re.compile(
    r"(?!.*(?:input|global))(?:(?:.*[._])?(?:(?:weight|proj)_scale|scale_inv|scales)|(?:.*\.)?scale)"
)
"""The scales of weights, by the whole name of a tensor."""

_KINDS: Final[Mapping[str, frozenset[str]]] = {
    "float8_e4m3fn": frozenset({"F8_E4M3"}),
    "uint8": frozenset({"U8", "I8", "F4"}),
    "int8": frozenset({"I8"}),
    "int32": frozenset({"I32"}),
}
"""What a quantised weight in memory is stored as; others are converted while loading."""

_CONVERTED: Final = frozenset({"F64", "F32", "F16", "BF16"})
_PROBE: Final = 4096
"""A width that no format pads: it shows the bits of a weight, and the weights of a scale."""

_SLIGHT: Final = 1000
"""Scales that differ by less than one part of so many of a layer's bytes are no other form:
ranks may refine blocks, and a stacked tensor may have one scale for two matrices."""

_MANY: Final = 16
"""More scales a matrix than refined blocks of a matrix of one block."""


class Planned(NamedTuple):
    """What the config makes of the routed experts of a layer: their weights, and their scales."""

    tensors: tuple[TensorSpec, ...]
    probe: tuple[TensorSpec, ...]
    experts: int
    weights: int

    @property
    def main(self) -> tuple[TensorSpec, ...]:
        """The tensors of the weights themselves."""
        return _main(self.tensors)

    @property
    def said(self) -> str:
        """The tensors of the weights with dtype and shape."""
        return " and ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in self.main)

    def as_stored(self, weights: Sequence[Stored], scales: Sequence[Stored]) -> bool:
        """Whether these tensors hold the weights in the form that is planned."""
        dtype = self.main[0].dtype
        kinds = _KINDS.get(dtype, _CONVERTED) | ({"I32"} if self._is_repacked else set())
        if any(stored.dtype not in kinds for stored in weights):
            return False
        if not self._hold(weights) or not self._as_shaped(weights):
            return False
        return dtype not in _KINDS or self._scaled(scales)

    def strays(self, here: Iterable[tuple[str, Stored]]) -> list[Stored]:
        """What only other weights have beside them, of matrices of single experts."""
        leaves = (t._replace(name=t.name.partition("_")[2]) for t in self.tensors)
        unknown = strays_beside(leaves)
        ones = ((_ONE.fullmatch(rest), tensor) for rest, tensor in here)
        return [tensor for one, tensor in ones if one is not None and one[1] in unknown]

    @property
    def _is_repacked(self) -> bool:
        """Whether memory holds two integers in a byte, and files eight in an int32: Quark's."""
        names = {tensor.name for tensor in self.tensors}
        return self.main[0].dtype == "uint8" and "w13_weight_zero_point" in names

    def _hold(self, weights: Sequence[Stored]) -> bool:
        """Whether they are as many as are planned."""
        if self.main[0].dtype not in _KINDS:
            return sum(prod(t.shape) for t in weights) == self.weights
        stored = sum(t.nbytes for t in weights)
        if stored == sum(t.nbytes for t in self.main):
            return True
        probed = sum(t.nbytes for t in _main(self.probe))
        return stored * 3 * _PROBE * _PROBE == probed * self.weights

    def _as_shaped(self, weights: Sequence[Stored]) -> bool:
        """Whether matrices of single experts have the leaf and the sides of the planned ones."""
        if sum(t.nbytes for t in weights) != sum(t.nbytes for t in self.main):
            return True  # memory pads them, or has another dtype
        sides = set()
        for tensor in self.main:
            rows, columns = tensor.shape[1:]
            halves = [(rows // 2, columns), (rows, columns // 2)]
            if self._is_repacked:
                each = rows // 2 if tensor.name.startswith("w13") else rows
                sides.add((2 * columns, each // 8))
            else:
                sides |= {*halves} if tensor.name.startswith("w13") else {(rows, columns)}
        leaf = self.main[0].name.removeprefix("w13_")
        return all(
            one.rpartition(".")[2] == leaf and tensor.shape in sides
            for tensor in weights
            if (one := _after_experts(tensor.name)) and _ONE.fullmatch(one)
        )

    def _scaled(self, scales: Sequence[Stored]) -> bool:
        planned = [t for t in self.tensors if _SCALES.fullmatch(t.name)]
        probed = sum(prod(t.shape) for t in self.probe if _SCALES.fullmatch(t.name))
        stored, wanted = (sum(prod(t.shape) for t in some) for some in (scales, planned))
        if not planned or stored * 3 * _PROBE * _PROBE == probed * self.weights:
            return True
        fewer, more = sorted((stored, wanted))
        if fewer <= 3 * self.experts and more > _MANY * 3 * self.experts:
            return False  # a scale a matrix, and a scale a block or a row
        element = sum(t.nbytes for t in planned) / wanted
        return abs(stored - wanted) * element * _SLIGHT <= sum(t.nbytes for t in self.tensors)


class Fault(NamedTuple):
    """A layer whose experts are stored in another form: what is planned, and what is stored."""

    layer_id: int
    planned: str
    stored: str


def compare_experts(
    blueprint: Blueprint, checkpoint: Checkpoint
) -> tuple[tuple[Disagreement, ...], tuple[Fault, ...]]:
    """What is not there or has unknown names, and what has another form, layer by layer."""
    stored = _by_layer(blueprint, checkpoint)
    disagreements: list[Disagreement] = []
    faults: list[Fault] = []
    for layer_id in range(len(blueprint.layers)):
        here = stored.get(layer_id, [])
        weights = [tensor for rest, tensor in here if _is_weight(rest)]
        if blueprint.experts is None or not blueprint.is_routed(layer_id):
            if weights:
                faults.append(Fault(layer_id, "no routed experts", _said(weights)))
            continue
        prefix, experts = blueprint.experts_prefix(layer_id), blueprint.experts
        planned = Planned(
            layer_experts(blueprint, layer_id, _WHOLE, rank=0),
            blueprint.quantization.experts(prefix, 1, _PROBE, _PROBE, False, blueprint.dtype),
            experts.experts,
            experts.experts * 3 * experts.intermediate * blueprint.hidden,
        )
        if not weights:
            said = f"{here[0][1].name}, a name that is not known" if here else "nothing"
            disagreements.append(Disagreement(prefix, planned.said, said))
        elif not planned.as_stored(weights, [t for rest, t in here if _SCALES.fullmatch(rest)]):
            faults.append(Fault(layer_id, planned.said, _said(weights)))
        elif strays := planned.strays(here):
            disagreements.append(Disagreement(prefix, "nothing beside the weights", _said(strays)))
    return tuple(disagreements), tuple(faults)


def _by_layer(
    blueprint: Blueprint, checkpoint: Checkpoint
) -> Mapping[int, list[tuple[str, Stored]]]:
    """The tensors of routed experts by layer, with what follows `experts.` in each name."""
    by_stem: dict[str, dict[int, list[tuple[str, Stored]]]] = {}
    for name, tensor in checkpoint.tensors.items():
        found = _EXPERT.fullmatch(name) if "experts." in name else None
        if found is not None:
            layers = by_stem.setdefault(found[1], {})
            layers.setdefault(int(found[2]), []).append((found[3], tensor))
    planned = blueprint.stem.removesuffix("layers")
    for stem in (planned, *(f"{stem}." if stem else "" for stem in STEMS)):
        if stem in by_stem:
            return by_stem[stem]
    return {}


def _after_experts(name: str) -> str:
    found = _EXPERT.fullmatch(name)
    return found[3] if found is not None else ""


def _is_weight(rest: str) -> bool:
    """Whether it is what holds weights, not their scales or biases."""
    one = _ONE.fullmatch(rest)
    return one[1] in _PACKS if one is not None else _STACKED.fullmatch(rest) is not None


def _main(tensors: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(t for t in tensors if t.name.partition("_")[2] in _PACKS)


def _said(weights: Sequence[Stored]) -> str:
    first, more = weights[0], len(weights) - 1
    others = f" and {more:,} more" if more else ""
    kinds = sorted({tensor.dtype for tensor in weights} - {first.dtype})
    also = f", also {', '.join(kinds)}" if kinds else ""
    return f"{first.name} as {first.dtype} {list(first.shape)}{others}{also}"
