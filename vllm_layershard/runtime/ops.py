"""The two ops that a compiler sees, and what is bound to their keys.

`layershard::reach(x, layer)` stands at a decoder layer's boundary, `layershard::wait(x, linear)`
before a linear reads its weight. Both declare the activation as mutated and leave it as it is: the
false dependency keeps them in order with the compute around them, under Inductor too. In a compiled
model a host may have them take another activation that this one is made of, ahead of what is fused.

Note [The short way]
Where no compiler looks on, a host calls the functions that are named as the ops, and they do the
work themselves. The dispatcher would take twice as long as the work of both, for what these ops do
not need: they have no gradient, no batching and one implementation. What a host has put around the
work is still there. A profiler sees no op then. (benchmarks/overhead.py)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.compiler import is_dynamo_compiling

from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.moves.series import MovingSeries
from vllm_layershard.runtime.series import ShardedSeries

_LIBRARY = torch.library.Library("layershard", "DEF")
_LIBRARY.define("reach(Tensor(a!) x, str layer) -> ()")
_LIBRARY.define("wait(Tensor(a!) x, str linear) -> ()")


@dataclass(frozen=True, slots=True)
class Place:
    """A position of a series; `moving` decides what a forward moves, if it has a choice."""

    series: ShardedSeries
    position: int
    moving: MovingSeries | None = None

    def has_arrived(self) -> bool:
        """Whether its weight was waited for, and may be read."""
        return self.series.has_arrived(self.position)


_boundaries: dict[str, tuple[Place, ...]] = {}
_linears: dict[str, Place] = {}
_devices: dict[str, Device] = {}
"""Of boundaries at which several series start: the device on whose side stream all of them move."""


def bind(layer: str, linear: str, place: Place) -> None:
    """Bind a linear to its place, and the place to its decoder layer's boundary.

    The order of binding is the order of starts: the same on every rank.
    """
    places = _boundaries[layer] = (*_boundaries.get(layer, ()), place)
    _linears[linear] = place
    if len(places) > 1:
        device, *others = {each.series.transport.device for each in places}
        _devices.pop(layer, None)
        if device is not None and not others:
            _devices[layer] = device


def unbind(layers: Iterable[str]) -> None:
    """Forget what is bound to these boundaries: a model is built anew under the same names."""
    for layer in layers:
        stale = _boundaries.pop(layer, ())
        _devices.pop(layer, None)
        for linear in [key for key, place in _linears.items() if place in stale]:
            del _linears[linear]


def bound_series() -> list[ShardedSeries]:
    """All series bound in this process, each once, in order of binding."""
    return list({id(place.series): place.series for place in _linears.values()}.values())


def _start_at(layer: str, shape: torch.Size | None) -> None:
    """What `reach` does. It is named apart from the op, so that a host may put itself around it."""
    device = _devices.get(layer)
    if device is None:
        _start_all(layer, shape)
        return
    device.open_boundary()
    try:
        _start_all(layer, shape)
    finally:
        device.close_boundary()


def _start_all(layer: str, shape: torch.Size | None) -> None:
    for place in _boundaries[layer]:
        if place.moving is None:
            place.series.reach(place.position)
        else:
            place.moving.reach(place.position, _rows_told_by(shape))


def _rows_told_by(shape: torch.Size | None) -> int | None:
    """n of an activation [n, width] at a boundary; None of another shape, and where there is none.

    vLLM's Transformers backend has a dimension of one in front. Gemma 3n has several activations
    of each token there: [4, n, width] (vLLM 0.32, model_executor/models/gemma3n.py).
    """
    if shape is None or len(shape) < 2 or shape[:-2].numel() != 1:
        return None
    return shape[-2]


def _wait_for(linear: str) -> None:
    """What `wait` does, likewise."""
    place = _linears[linear]
    if place.moving is None or place.moving.moves_weights:
        place.series.wait(place.position)


Work = Callable[..., None]
"""What an op does at the key that it is given; `reach` has the activation's shape, too."""

_work: dict[str, Work] = {"reach": _start_at, "wait": _wait_for}


def run_within(around: Callable[[Work], Work]) -> None:
    """From now on the work of both ops is what `around` makes of it; what was around it is not.

    So a host that captures graphs can end one before a movement, and begin the next behind it.
    """
    _work.update(reach=around(_start_at), wait=around(_wait_for))


def _reach(x: torch.Tensor | None, layer: str) -> None:
    # A first layer may be given none.
    _work["reach"](layer, None if x is None else x.shape)


def _wait(x: torch.Tensor, linear: str) -> None:
    _work["wait"](linear)


def reach(x: torch.Tensor | None, layer: str) -> None:
    """At a decoder layer's boundary: the op where a compiler looks on, else what it does.

    The dispatcher takes as long as both ops do: see the note [The short way] above.
    """
    if is_dynamo_compiling():
        torch.ops.layershard.reach(x, layer)
    else:
        _work["reach"](layer, None if x is None else x.shape)


def wait(x: torch.Tensor, linear: str) -> None:
    """Before a linear reads its weight, likewise."""
    if is_dynamo_compiling():
        torch.ops.layershard.wait(x, linear)
    else:
        _work["wait"](linear)


_LIBRARY.impl("reach", _reach, "CompositeExplicitAutograd")
_LIBRARY.impl("wait", _wait, "CompositeExplicitAutograd")
torch.library.register_fake("layershard::reach", lambda x, layer: None, lib=_LIBRARY)
torch.library.register_fake("layershard::wait", lambda x, linear: None, lib=_LIBRARY)
