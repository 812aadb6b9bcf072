"""Spans of a timeline: the row in which each is drawn, and its name for a person."""

from __future__ import annotations

from typing import Final, Literal

from vllm_layershard.estimate.forwards.overlap import Span, Track

Row = Literal["compute", "stall", "link"]

DRAWN: Final[dict[Track, Row]] = {
    "compute": "compute",
    "product": "compute",
    "stall": "stall",
    "link": "link",
    "there": "link",
    "back": "link",
}
"""What each track is drawn as. A stall is a gap in the compute, drawn in its row."""


def name_of(span: Span, *, by_rows: bool) -> str:
    """What happens in a span; `by_rows`: each rank computes its rows, in the place of an owner."""
    linear = span.suffix
    match span.track:
        case "compute":
            return linear or "attention or experts"
        case "stall":
            return f"waits for {linear}"
        case "link":
            return f"moves {linear}"
        case "there":
            return f"gathers all tokens of {linear}{'' if by_rows else ' on its owner'}"
        case "product":
            where = f"each rank's rows of {linear}" if by_rows else f"{linear} on its owner"
            return f"{where}, for all ranks"
        case "back":
            return f"sends the results of {linear} back"
