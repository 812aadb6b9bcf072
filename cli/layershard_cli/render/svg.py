"""A forward's timeline and a Pareto curve as SVG, without a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from layershard_cli.render.markup import escape
from layershard_cli.render.spans import DRAWN, name_of
from vllm_layershard.estimate import PhaseName
from vllm_layershard.estimate.forwards.overlap import Span
from vllm_layershard.estimate.pareto import Point, frontier
from vllm_layershard.planner.results.timelines import Timeline

_WIDTH: Final = 960
_LABEL: Final = 70
_ROW: Final = 26
_ROWS: Final = {"compute": 0, "stall": 0, "link": 1}


def timeline_svg(timeline: Timeline) -> str:
    """All layers of one forward: compute and waiting above, movement below; hover for a name.

    Empty where the forward has no timeline.
    """
    spans = timeline.forward.spans if timeline.forward else ()
    if not spans:
        return ""
    end = max(span.start_s + span.seconds for span in spans)
    scale = (_WIDTH - _LABEL) / end
    rows = [
        f'<text x="0" y="{_ROW * 0.7}">compute</text>',
        f'<text x="0" y="{_ROW * 1.7}">link</text>',
        *(_rectangle(span, scale, timeline.by_rows) for span in spans),
        *_ruler(spans, scale),
    ]
    label = escape(f"{timeline.phase}: compute and movement of one forward")
    return (
        f'<svg class="timeline" role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} '
        f'{_ROW * 2 + 18}">{"".join(rows)}</svg>'
    )


def _rectangle(span: Span, scale: float, by_rows: bool) -> str:
    x, width = _LABEL + span.start_s * scale, max(0.3, span.seconds * scale)
    shade, drawn = "even" if span.layer_id % 2 == 0 else "odd", DRAWN[span.track]
    return (
        f'<rect class="{drawn} {shade}" x="{x:.2f}" y="{_ROWS[drawn] * _ROW + 2}" '
        f'width="{width:.2f}" height="{_ROW - 6}"><title>layer {span.layer_id}: '
        f"{escape(name_of(span, by_rows=by_rows))}, {span.seconds * 1e6:,.1f} us</title></rect>"
    )


def _ruler(spans: Sequence[Span], scale: float) -> list[str]:
    firsts: dict[int, float] = {}
    for span in spans:
        if DRAWN[span.track] != "link":
            firsts.setdefault(span.layer_id, span.start_s)
    every = max(1, len(firsts) // 12)
    return [
        f'<text class="tick" x="{_LABEL + start * scale:.1f}" y="{_ROW * 2 + 12}">{layer_id}</text>'
        for index, (layer_id, start) in enumerate(firsts.items())
        if index % every == 0
    ]


def pareto_svg(
    points: Sequence[Point],
    phases: Sequence[PhaseName],
    saved_bytes: int,
    exposed: Mapping[PhaseName, float],
) -> str:
    """Bytes saved to the right, time exposed upwards, a curve for each phase.

    A ring marks the plan itself: the bytes that it saves, and the seconds that it exposes in the
    phases that are estimated. Empty without points.
    """
    if not points:
        return ""
    width, height, left, bottom = _WIDTH, 320, 80, 40
    most_bytes = max(max(point.saved_bytes for point in points), saved_bytes, 1)
    most_us = max(max(e for p in points for e in p.exposed) * 1e6, 1.0)

    def x(nbytes: int) -> float:
        return left + nbytes / most_bytes * (width - left - 20)

    def y(us: float) -> float:
        return height - bottom - us / most_us * (height - bottom - 20)

    parts = [
        f'<line class="axis" x1="{left}" y1="{y(0):.1f}" x2="{width}" y2="{y(0):.1f}"/>',
        f'<line class="axis" x1="{left}" y1="0" x2="{left}" y2="{y(0):.1f}"/>',
        f'<text x="{width - 20}" y="{height - 6}" text-anchor="end">saved per rank, GiB</text>',
        f'<text x="{left + 6}" y="12">exposed per forward, ms</text>',
    ]
    for step in range(5):
        nbytes, us = most_bytes * step // 4, most_us * step / 4
        parts.append(
            f'<text class="tick" x="{x(nbytes):.1f}" y="{height - 22}" text-anchor="middle">'
            f"{nbytes / 2**30:.2f}</text>"
            f'<text class="tick" x="{left - 6}" y="{y(us) + 4:.1f}" text-anchor="end">'
            f"{us / 1e3:.2f}</text>"
        )
    for index, name in enumerate(phases):
        best = frontier(points, index)
        line = " ".join(f"{x(p.saved_bytes):.1f},{y(p.exposed[index] * 1e6):.1f}" for p in best)
        parts.append(f'<polyline class="phase{index}" points="{line}"/>')
        parts.extend(
            f'<circle class="phase{index}" cx="{x(p.saved_bytes):.1f}" '
            f'cy="{y(p.exposed[index] * 1e6):.1f}" r="4"><title>{escape(_described(p, index))}'
            "</title></circle>"
            for p in points
        )
        if name in exposed:
            parts.append(
                f'<circle class="chosen phase{index}" cx="{x(saved_bytes):.1f}" '
                f'cy="{y(min(most_us, exposed[name] * 1e6)):.1f}" r="8">'
                f"<title>this plan, {escape(name)}</title></circle>"
            )
        parts.append(
            f'<text class="phase{index}" x="{left + 20 + 110 * index}" y="32">{escape(name)}</text>'
        )
    return (
        '<svg class="pareto" role="img" aria-label="Memory saved against time exposed" '
        f'viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'
    )


def _described(point: Point, index: int) -> str:
    return (
        f"{', '.join(point.layers)}, layer_stride {point.layer_stride}: saves "
        f"{point.saved_bytes / 2**30:.2f} GiB, exposes {point.exposed[index] * 1e3:.2f} ms"
    )
