"""An estimate's timelines in the Trace Event Format that Chrome and Perfetto open."""

from __future__ import annotations

from typing import Any, Final

from vllm_layershard.estimate import Estimate
from vllm_layershard.estimate.overlap import Span

_ROWS: Final = {"compute": (0, "compute"), "stall": (0, "compute"), "link": (1, "link")}
"""Track -> thread id and name: a stall is a gap in the compute, drawn in its row."""


def trace_document(estimate: Estimate) -> dict[str, Any]:
    """A process for each phase, with a row for the compute and one for the link; microseconds."""
    events: list[dict[str, Any]] = []
    for pid, phase in enumerate(estimate.phases):
        name = f"{phase.name}, {phase.batch.tokens:,} tokens a rank"
        events.append(_named("process_name", pid, 0, name))
        for tid, row in sorted(set(_ROWS.values())):
            events.append(_named("thread_name", pid, tid, row))
        events.extend(_event(pid, span) for span in phase.asked.forward.spans)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _event(pid: int, span: Span) -> dict[str, Any]:
    what = {"compute": span.suffix or "attention or experts", "link": span.suffix}.get(
        span.track, f"waits for {span.suffix}"
    )
    return {
        "name": f"layer {span.layer_id}: {what}",
        "cat": span.track,
        "ph": "X",
        "ts": round(span.start_s * 1e6, 3),
        "dur": round(span.seconds * 1e6, 3),
        "pid": pid,
        "tid": _ROWS[span.track][0],
        "args": {"layer": span.layer_id, "linear": span.suffix},
    }
