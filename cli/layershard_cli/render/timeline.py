"""The first layers of a forward, drawn in characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from layershard_cli.render.spans import DRAWN, Row
from vllm_layershard.estimate.forwards.overlap import Span

LAYERS: Final = 6
"""Layers that are drawn from where the sharding is in full swing."""

_LABEL: Final = 9

_What = tuple[Row, int]
"""What is drawn, and of which layer."""


@dataclass(frozen=True, slots=True)
class Ink:
    """The characters of a drawing: compute and movement of even and odd layers, waiting."""

    compute: tuple[str, str]
    link: tuple[str, str]
    stall: str


UNICODE: Final = Ink(compute=("█", "▓"), link=("━", "─"), stall="░")
ASCII: Final = Ink(compute=("#", "%"), link=("=", "-"), stall=".")


def draw(spans: Sequence[Span], width: int, ink: Ink) -> list[str]:
    """Lines of at most `width` characters: a ruler of layers, the compute, the link.

    Empty without spans. A character of the compute shows what fills most of
    it, one of the link that anything moves.
    """
    if not spans:
        return []
    device = [span for span in spans if DRAWN[span.track] != "link"]
    layers = sorted({span.layer_id for span in device})
    middle = max(0, (len(layers) - LAYERS) // 2)
    shown = layers[middle : middle + LAYERS]
    inside = [span for span in device if span.layer_id in shown]
    start = inside[0].start_s
    end = inside[-1].start_s + inside[-1].seconds
    columns = max(10, width - _LABEL)
    per_column = (end - start) / columns
    edges = [start + column * per_column for column in range(columns)]

    def row(drawn: Sequence[Row], least: float) -> str:
        chosen = [span for span in spans if DRAWN[span.track] in drawn]
        return "".join(_mark(_fullest(chosen, x, x + per_column, least), ink) for x in edges)

    compute = row(("compute", "stall"), per_column / 2)
    link = row(("link",), 0.0)
    ruler = [" "] * columns
    for layer_id in shown:
        first = next(span for span in inside if span.layer_id == layer_id)
        column = min(columns - 1, int((first.start_s - start) / per_column))
        for offset, digit in enumerate(str(layer_id)):
            if column + offset < columns:
                ruler[column + offset] = digit
    return [
        f"{'layer':{_LABEL}}{''.join(ruler).rstrip()}",
        f"{'compute':{_LABEL}}{compute}".rstrip(),
        f"{'link':{_LABEL}}{link}".rstrip(),
    ]


def _fullest(spans: Sequence[Span], low: float, high: float, least: float) -> _What | None:
    """The layer and track that cover most of an interval; None if none covers more than `least`."""
    covered: dict[_What, float] = {}
    for span in spans:
        inside = min(high, span.start_s + span.seconds) - max(low, span.start_s)
        if inside > 0:
            what = (DRAWN[span.track], span.layer_id)
            covered[what] = covered.get(what, 0.0) + inside
    best = max(covered, key=lambda what: covered[what], default=None)
    return best if best is not None and covered[best] > least else None


def _mark(what: _What | None, ink: Ink) -> str:
    if what is None:
        return " "
    drawn, layer_id = what
    if drawn == "stall":
        return ink.stall
    return (ink.compute if drawn == "compute" else ink.link)[layer_id % 2]
