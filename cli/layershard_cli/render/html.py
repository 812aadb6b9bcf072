"""A plan as one self-contained HTML file, without a script or anything from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from layershard_cli.render.kv_cache import cache_tokens
from layershard_cli.render.markup import bullets, escape, table
from layershard_cli.render.svg import pareto_svg, timeline_svg
from layershard_cli.render.units import milliseconds, size
from vllm_layershard.estimate import Estimate
from vllm_layershard.estimate.communicators import communicators_of
from vllm_layershard.estimate.pareto import Point
from vllm_layershard.estimate.wording import tokens
from vllm_layershard.models import GroupPlan
from vllm_layershard.plan import EVERY_RANK, NO_RANK
from vllm_layershard.planner.results.plan_result import PlanResult
from vllm_layershard.planner.results.timelines import Timeline, timelines_of
from vllm_layershard.version import __version__

_EVERYBODY: Final = {EVERY_RANK: "all", NO_RANK: "all, in parts"}

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b2733; --paper: #fff; --soft: #66788a;
  --a: #2f6db5; --b: #7fb0e6; --c: #c2571a; --d: #eaa878; --wait: #d22; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4ebf2; --paper: #14191f; --soft: #93a4b5; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; }
.figures b { display: block; font-size: 1.4rem; }
.figures small, .soft { color: var(--soft); }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 13px; }
svg text.tick { fill: var(--soft); font-size: 11px; }
.compute.even { fill: var(--a); } .compute.odd { fill: var(--b); }
.link.even { fill: var(--c); } .link.odd { fill: var(--d); } .stall { fill: var(--wait); }
.axis { stroke: var(--soft); } polyline { fill: none; stroke-width: 1.5; }
polyline.phase0 { stroke: var(--a); } polyline.phase1 { stroke: var(--c); }
circle.phase0, text.phase0 { fill: var(--a); } circle.phase1, text.phase1 { fill: var(--c); }
circle.chosen { fill: none; stroke: var(--ink); stroke-width: 2; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: right; }
td:first-child, th:first-child { text-align: left; }
pre { overflow-x: auto; padding: .8rem; background: #8881; }
.scroll { overflow-x: auto; }
"""


def page(result: PlanResult, points: Sequence[Point]) -> str:
    """The whole document."""
    sharding, forecast = result.planned, result.forecast
    title = f"Layer sharding plan: {sharding.model.name}"
    layout = sharding.deployment.layout
    ep = "with" if sharding.deployment.ep else "without"
    cache = cache_tokens(result)
    rank, saved = cache.limit.rank, min(sharding.saved_bytes)
    held = sharding.weight_bytes[rank].total
    left = held - sharding.saved_bytes[rank]
    figures = [
        (f"{size(saved)}", "saved per rank, at least"),
        (f"{cache.tokens:,}", cache.label),
        (f"{size(held)} → {size(left)}", f"weights per rank{cache.where}"),
    ]
    private = communicators_of(sharding, forecast.hardware)
    if private.nbytes:
        kept = f"kept by private communicators a rank: {private.said}"
        figures.append((size(private.nbytes), kept))
    timelines = timelines_of(sharding, forecast)
    exposed = {one.phase: max(0.0, one.forward.exposed) for one in timelines if one.forward}
    curves = pareto_svg(points, tuple(forecast.batches), saved, exposed)
    verdict = (
        f'<p id="verdict"><strong>{escape(forecast.verdict)}</strong> '
        f"(estimate for {escape(forecast.hardware.name)})</p>"
    )
    launch = [verdict, *_commands(result.launches)] if result.launches else []
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(sharding.model.architecture)}, {sharding.model.num_layers} layers, "
        f"quantization {escape(sharding.model.quantization)} ({escape(sharding.model.source)}). "
        f"tp {layout.tp}, dp {layout.dp}, pcp {layout.pcp}, pp {layout.pp}, {ep} expert "
        f"parallelism: {layout.world_size} ranks.</p>",
        *([] if launch else [verdict]),
        '<div class="figures">',
        *(f"<div><b>{escape(k)}</b><small>{escape(v)}</small></div>" for k, v in figures),
        "</div>",
        *launch,
        *_exchange(result),
        *_move(result),
        "<h2>One forward</h2>",
        *(map(_timeline, timelines) if timelines else ["<p>No estimate.</p>"]),
        "<h2>Memory saved against time exposed</h2>",
        curves or "<p>No estimate.</p>",
        '<p class="soft">Each point is a set of linears at a layer_stride; lines join those that '
        f"no other beats; the rings are this plan.{_as_it_moves(timelines)}</p>",
        "<h2>What each rank holds</h2>",
        *(_ledger(group) for group in sharding.groups),
        "<h2>Which rank stores which layer</h2>",
        *(_owners(group) for group in sharding.groups),
        "<h2>What stands behind the numbers</h2>",
        "<p>Layer bytes and savings are exact; totals and KV bytes follow from formulas; times "
        "as stated here:</p>",
        bullets(forecast.assumptions if isinstance(forecast, Estimate) else ()),
        bullets(result.warnings),
        f'<p class="soft">layershard {escape(__version__)}</p>',
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{chr(10).join(body)}\n</body></html>\n"
    )


def _commands(launches: Sequence[str]) -> list[str]:
    first = f"<pre>{escape(launches[0])}</pre>"
    if len(launches) == 1:
        return [first]
    from layershard_cli.render.nodes import further_nodes  # seldom needed

    lines = escape("\n".join(further_nodes(launches)))
    return [
        f"<p>On the first of {len(launches)} nodes:</p>{first}",
        f"<p>On the others the same command, followed by what stands here:</p><pre>{lines}</pre>",
    ]


def _exchange(result: PlanResult) -> list[str]:
    if not result.planned.deployment.exchange or result.exchange is None:
        return []
    return [f"<p>Exchange of tokens: {escape(result.exchange.verdict)}</p>"]


def _move(result: PlanResult) -> list[str]:
    found = result.move
    if found is None:
        return []
    from layershard_cli.render.activations import moved_section  # seldom asked for

    return moved_section(found, result.forecast.hardware.name)


def _timeline(timeline: Timeline) -> str:
    return (
        f"<h3>{escape(timeline.phase)}, {tokens(timeline.tokens)} a rank: {_times(timeline)}</h3>"
        f"{timeline_svg(timeline)}"
    )


def _times(timeline: Timeline) -> str:
    forward = timeline.forward
    if forward is None:
        return "activations move, how long is not estimated"
    compute, moved = milliseconds(forward.compute), milliseconds(forward.fetch)
    longer = milliseconds(forward.exposed)
    if timeline.moves == "activations":
        return f"activations move, compute {compute}, collectives {moved}, longer by {longer}"
    return f"compute {compute}, movement {moved}, exposed {longer}"


def _as_it_moves(timelines: Sequence[Timeline]) -> str:
    if all(timeline.moves == "weights" for timeline in timelines):
        return ""
    return " Points are of forwards that move weights; a ring is as this plan moves."


def _ledger(group: GroupPlan) -> str:
    rows = [
        (
            series.series.name,
            str(group.pp_stage),
            str(rank),
            f"{series.ledger.replicated_bytes:,}",
            f"{series.ledger.resident_bytes[rank]:,}",
            f"{series.ledger.slot_bytes:,}",
            f"{series.ledger.saved_bytes[rank]:,}",
        )
        for series in group.plan.series
        for rank in range(group.plan.group_size)
    ]
    heads = ("series", "stage", "group rank", "replicated", "resident", "slots", "saved")
    return table(heads, rows)


def _owners(group: GroupPlan) -> str:
    layers = sorted({i for series in group.plan.series for i in series.owner_of_layer})
    rows = []
    for series in group.plan.series:
        owner = series.owner_of_layer
        cells = ["-" if i not in owner else _EVERYBODY.get(owner[i], str(owner[i])) for i in layers]
        rows.append((series.series.name, *cells))
    return table((f"layer (stage {group.pp_stage})", *map(str, layers)), rows)
