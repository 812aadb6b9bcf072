"""The two ops that a compiler sees, and what is bound to their keys.

`layershard::reach(x, layer)` stands at a decoder layer's boundary, `layershard::wait(x, linear)`
before a linear reads its weight. Both declare the activation as mutated and leave it as it is: the
false dependency keeps them in order with the compute around them, under Inductor too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from vllm_layershard.runtime.series import ShardedSeries

_LIBRARY = torch.library.Library("layershard", "DEF")
_LIBRARY.define("reach(Tensor(a!) x, str layer) -> ()")
_LIBRARY.define("wait(Tensor(a!) x, str linear) -> ()")


@dataclass(frozen=True, slots=True)
class Place:
    """A position of a series."""

    series: ShardedSeries
    position: int


_boundaries: dict[str, tuple[Place, ...]] = {}
_linears: dict[str, Place] = {}


def bind(layer: str, linear: str, place: Place) -> None:
    """Bind a linear to its place, and the place to its decoder layer's boundary.

    The order of binding is the order of starts: the same on every rank.
    """
    _boundaries[layer] = (*_boundaries.get(layer, ()), place)
    _linears[linear] = place


def unbind(layers: Iterable[str]) -> None:
    """Forget what is bound to these boundaries: a model is built anew under the same names."""
    for layer in layers:
        stale = _boundaries.pop(layer, ())
        for linear in [key for key, place in _linears.items() if place in stale]:
            del _linears[linear]


def bound_series() -> list[ShardedSeries]:
    """All series bound in this process, each once, in order of binding."""
    return list({id(place.series): place.series for place in _linears.values()}.values())


def _reach(x: torch.Tensor, layer: str) -> None:
    for place in _boundaries[layer]:
        place.series.reach(place.position)


def _wait(x: torch.Tensor, linear: str) -> None:
    place = _linears[linear]
    place.series.wait(place.position)


_LIBRARY.impl("reach", _reach, "CompositeExplicitAutograd")
_LIBRARY.impl("wait", _wait, "CompositeExplicitAutograd")
torch.library.register_fake("layershard::reach", lambda x, layer: None, lib=_LIBRARY)
torch.library.register_fake("layershard::wait", lambda x, linear: None, lib=_LIBRARY)
