"""The timelines of a plan in the Trace Event Format that Chrome and Perfetto open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from layershard_cli.render.spans import DRAWN, name_of
from vllm_layershard.estimate.forwards.overlap import Span
from vllm_layershard.estimate.wording import tokens
from vllm_layershard.planner.results.timelines import Timeline

_ROWS: Final = {"compute": (0, "compute"), "stall": (0, "compute"), "link": (1, "link")}
"""What a span is drawn as -> thread id and name."""


def trace_document(timelines: Sequence[Timeline]) -> dict[str, Any]:
    """A process for each phase, with a row for the compute and one for the link; microseconds.

    A phase without a timeline has no process.
    """
    events: list[dict[str, Any]] = []
    for pid, timeline in enumerate(timelines):
        if timeline.forward is None:
            continue
        moved = ", activations move" if timeline.moves == "activations" else ""
        name = f"{timeline.phase}, {tokens(timeline.tokens)} a rank{moved}"
        events.append(_named("process_name", pid, 0, name))
        for tid, row in sorted(set(_ROWS.values())):
            events.append(_named("thread_name", pid, tid, row))
        events.extend(_event(pid, span, timeline.by_rows) for span in timeline.forward.spans)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _event(pid: int, span: Span, by_rows: bool) -> dict[str, Any]:
    what = span.suffix if span.track == "link" else name_of(span, by_rows=by_rows)
    return {
        "name": f"layer {span.layer_id}: {what}",
        "cat": span.track,
        "ph": "X",
        "ts": round(span.start_s * 1e6, 3),
        "dur": round(span.seconds * 1e6, 3),
        "pid": pid,
        "tid": _ROWS[DRAWN[span.track]][0],
        "args": {"layer": span.layer_id, "linear": span.suffix},
    }
