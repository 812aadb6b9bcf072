"""The timeline of a forward that moves activations: its operations, and two collectives a linear.

All ranks of a group meet in each collective, so one rank's forward is every rank's. The product of
a layer is drawn once. Its owner computes it, or each rank its rows; whoever does not waits as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_layershard.estimate.activations.outcome import LinearTime
from vllm_layershard.estimate.forwards.overlap import Forward, Span, TimedLayer, Track


def moved_forward(
    layers: Sequence[TimedLayer], moved: Mapping[tuple[int, str], LinearTime]
) -> Forward:
    """A forward of these layers with its timeline, in seconds; `fetch` are its collectives.

    `moved` has the times of the linears whose activations move, by layer and suffix. The product at
    home gives way to all ranks' tokens `there`, their product and the results `back`.
    """
    spans: list[Span] = []
    left, now, compute, collectives = dict(moved), 0.0, 0.0, 0.0

    def add(tracks: Sequence[Track], layer_id: int, suffix: str, seconds: float) -> None:
        nonlocal now
        spans.extend(Span(track, layer_id, suffix, now, seconds) for track in tracks)
        now += seconds

    for layer_id, operations in layers:
        for suffix, seconds, _ in operations:
            compute += seconds
            times = left.pop((layer_id, suffix), None)
            if times is None:
                add(["compute"], layer_id, suffix, seconds)
                continue
            collectives += times.there + times.back
            add(["stall", "there"], layer_id, suffix, times.there)
            add(["product"], layer_id, suffix, times.product)
            add(["stall", "back"], layer_id, suffix, times.back)
    assert not left, f"no operation is one of {[*left]}"
    return Forward(
        compute=compute,
        fetch=collectives,
        exposed=now - compute,
        stalled=collectives,
        spans=tuple(spans),
    )
