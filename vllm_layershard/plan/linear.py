"""Linear: one linear of one layer, as its tensors lie in a rank's memory at run time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from vllm_layershard.errors import PlanError
from vllm_layershard.never_sharded import refusal_of

_SMALL_SHARE = 10
"""A tensor below 1/10 of the linear's largest one stays replicated: block scales of fp8 (1/16384
of the weight) do, the packed weight and its group scales of int4 (1/8 at group size 32) do not."""


class TensorSpec(NamedTuple):
    """A tensor without its data. `dtype` is torch's name without the module (`bfloat16`)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    stride: tuple[int, ...] = ()

    @property
    def layout(self) -> str:
        """Shape, stride and dtype: what must be equal for two tensors to share a slot."""
        stride = f"/{'x'.join(map(str, self.stride))}" if self.stride else ""
        return f"{self.dtype}[{'x'.join(map(str, self.shape))}{stride}]"


class Linear(NamedTuple):
    """One linear layer on one rank.

    `prefix` is its dotted name in the model, `layer_id` the absolute index of its decoder layer.
    `tp_replicated`: every tensor-parallel rank holds the same copy (`tp_size == 1`). `tp_copies`:
    so many neighbouring ones hold the same part of a linear that is split.
    """

    prefix: str
    layer_id: int
    tp_replicated: bool
    tensors: tuple[TensorSpec, ...]
    tp_copies: int = 1

    @property
    def large(self) -> tuple[TensorSpec, ...]:
        """The tensors that move."""
        most = max([tensor.nbytes for tensor in self.tensors], default=0)
        return tuple([t for t in self.tensors if t.nbytes and t.nbytes * _SMALL_SHARE >= most])

    @property
    def large_bytes(self) -> int:
        """Bytes of this linear that one rank of a group stores for all."""
        return sum([tensor.nbytes for tensor in self.large])

    @property
    def small_bytes(self) -> int:
        """Bytes that stay on every rank: scales, biases."""
        return self.nbytes - self.large_bytes

    @property
    def nbytes(self) -> int:
        """All bytes."""
        return sum([tensor.nbytes for tensor in self.tensors])

    def lost_weight_of(self, loaded: Linear) -> bool:
        """Whether nothing is left here that is large against `loaded`, the same linear before.

        Kernels may pack a weight into memory of their own and empty the tensor that held it.
        """
        most, left = (max((t.nbytes for t in x.tensors), default=0) for x in (loaded, self))
        return left * _SMALL_SHARE < most

    def is_named(self, name: str) -> bool:
        """Whether `name` is a dotted suffix of this linear's prefix."""
        return self.prefix == name or self.prefix.endswith("." + name)


@cache
def suffix_of(prefix: str) -> str:
    """The part of a linear's name after its decoder layer: `self_attn.o_proj`."""
    parts = prefix.split(".")
    indices = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[indices[0] + 1 :]) if indices else prefix


def short_names(linears: Iterable[Linear]) -> list[str]:
    """For each kind of linear the shortest suffix that names it and no other, in forward order."""
    suffixes = list(dict.fromkeys(suffix_of(linear.prefix) for linear in linears))
    names = []
    for suffix in suffixes:
        parts = suffix.split(".")
        tails = [".".join(parts[i:]) for i in reversed(range(len(parts)))]
        named = (sum(f".{other}".endswith(f".{tail}") for other in suffixes) for tail in tails)
        names.append(next((tail for tail, n in zip(tails, named, strict=True) if n == 1), suffix))
    return names


def no_match(name: str, linears: Iterable[Linear]) -> PlanError:
    """The error for a configured name that matches no linear: lists those that may be sharded."""
    allowed = (linear for linear in linears if refusal_of(suffix_of(linear.prefix)) is None)
    return PlanError(
        f"{name!r} matches no linear of this model; those that may be sharded are: "
        f"{inventory(allowed)}"
    )


def none_left(name: str, layer_stride: int) -> PlanError:
    """The error for a layer_stride that leaves no layer of a name to shard."""
    return PlanError(f"layer_stride {layer_stride} leaves no layer of {name!r} to shard; lower it")


def inventory(linears: Iterable[Linear]) -> str:
    """The linears' suffixes with the number of layers and the size of each."""
    found: dict[tuple[str, int], int] = {}
    for linear in linears:
        key = (suffix_of(linear.prefix), linear.large_bytes)
        found[key] = found.get(key, 0) + 1
    return ", ".join(
        f"{suffix} ({count} x {nbytes:,} bytes)" for (suffix, nbytes), count in found.items()
    )


def select(linears: Sequence[Linear], names: Sequence[str]) -> dict[str, tuple[Linear, ...]]:
    """The linears of each name, in layer order. Names that match nothing map to ().

    Raises:
        PlanError: a name matches two linears of one layer, so that it names no series.
    """
    selected: dict[str, tuple[Linear, ...]] = {}
    for name in names:
        matched = sorted((x for x in linears if x.is_named(name)), key=lambda x: x.layer_id)
        for one, other in pairwise(matched):
            if one.layer_id == other.layer_id:
                raise PlanError(
                    f"{name!r} matches both {one.prefix} and {other.prefix} of layer "
                    f"{one.layer_id}; write the longer suffix of the one you mean"
                )
        selected[name] = tuple(matched)
    return selected
