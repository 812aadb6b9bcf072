"""A plan as tables, for a person."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from layershard_cli.output import emit
from layershard_cli.render.kv_cache import cache_tokens
from layershard_cli.render.sheet import Column, Sheet
from layershard_cli.render.units import milliseconds, size, span
from vllm_layershard.estimate import Abstention, Estimate, Forecast, Phase, PhaseName
from vllm_layershard.estimate.communicators import communicators_of
from vllm_layershard.estimate.forwards.overlap import Forward
from vllm_layershard.estimate.wording import percent, tokens
from vllm_layershard.models import Evidence, Sharding
from vllm_layershard.planner.paying import Offer
from vllm_layershard.planner.results.plan_result import PlanResult

if TYPE_CHECKING:
    from vllm_layershard.planner.results.timelines import Timeline


def print_plan(result: PlanResult, *, timeline: bool = False, ledger: bool = False) -> None:
    """`layershard plan`."""
    sharding, forecast = result.planned, result.forecast
    sheet = Sheet()
    print_heading(sheet, sharding, result.evidence)
    rows = []
    for group in sharding.groups:
        for series_plan in group.plan.series:
            saved = series_plan.ledger.saved_bytes
            rows.append(
                [
                    series_plan.series.name,
                    str(group.pp_stage),
                    str(group.plan.group_size),
                    str(len(series_plan.series)),
                    size(series_plan.series.layer_bytes),
                    f"{series_plan.schedule.num_slots} = {size(series_plan.ledger.slot_bytes)}",
                    span(min(saved), max(saved)),
                ]
            )
    titles = ("stage", "ranks", "layers", "layer", "slots", "saved per rank")
    columns = (Column("series"), *(Column(title, right=True) for title in titles))
    sheet.table("What is sharded", columns, rows)

    cache = cache_tokens(result)
    rank = cache.limit.rank
    saved_bytes, held = sharding.saved_bytes[rank], sharding.weight_bytes[rank].total
    estimated = _estimated(forecast)
    sheet.pairs(
        [
            ("weights per rank", f"{size(held)} -> {size(held - saved_bytes)}{cache.where}"),
            ("saved per rank", _saved(saved_bytes, min(sharding.saved_bytes))),
            ("KV cache", cache.sentence),
            *(
                (f"{name}, {tokens(batch.tokens)}", estimated.times[name])
                for name, batch in forecast.batches.items()
            ),
            ("movement", _movement(sharding)),
            *_communicators(result),
            *_on_a_cpu(sharding),
            *_on_dense_mlps(sharding),
            ("prefetch_step", f"{sharding.config.prefetch_step}{estimated.best_steps}"),
            ("verdict", f"{forecast.verdict}{estimated.source}"),
        ]
    )
    if sharding.deployment.exchange:
        from layershard_cli.render.exchange import print_exchange

        print_exchange(sheet, result)
    if sharding.config.move != "weights" and sharding.moves:
        from layershard_cli.render.move import print_move

        print_move(sheet, result)
    if timeline:
        from vllm_layershard.planner.results.timelines import timelines_of

        _print_timelines(sheet, timelines_of(sharding, forecast))
    if ledger:
        _print_ledger(sheet, sharding)
    sheet.line(
        "Layer bytes and savings are exact, totals and KV bytes follow from formulas"
        + (", times are assumed:" if estimated.assumptions else "."),
    )
    for assumption in estimated.assumptions:
        sheet.line(f"  - {assumption}")
    for warning in result.warnings:
        sheet.note(warning)
    if result.offer is not None:
        sheet.line(_offered(result.offer))
    _print_launch(sheet, result.launches)


def _saved(here: int, least: int) -> str:
    """What the rank that limits the cache saves, and the fewest bytes of all ranks."""
    at_least = f"at least {size(least)} ({least:,} bytes)"
    if here == least:
        return at_least
    return f"{size(here)} ({here:,} bytes) there, {at_least} elsewhere"


def _print_launch(sheet: Sheet, launches: Sequence[str]) -> None:
    """The first node's command, and what further nodes add to it."""
    nodes = len(launches)
    if launches:
        sheet.line("Launch:" if nodes == 1 else f"Launch, on the first of {nodes} nodes:")
        emit(launches[0])
    if nodes > 1:
        from layershard_cli.render.nodes import further_nodes  # seldom needed

        sheet.line("On the others the same command, followed by what stands here:")
        for line in further_nodes(launches):
            emit(line)


def _offered(offer: Offer) -> str:
    """What stripes give and cost; with the flag the launch command has them."""
    least = min(offer.planned.saved_bytes)
    times = (f"{name} {_exposed(forward)}" for name, forward in offer.forwards.items())
    return (
        f"Offered: --placement striped, saved per rank at least {size(least)} ({least:,} bytes), "
        f"exposed in {', in '.join(times)}"
    )


def _on_dense_mlps(sharding: Sharding) -> Iterator[tuple[str, str]]:
    """Of the pipeline stage whose dense MLPs are largest."""
    if sharding.split_mlps:
        from vllm_layershard.estimate.moved.dense_mlps import gathered_for_mlps  # seldom asked for

        most = max(sharding.split_mlps, key=lambda stage: stage.held_bytes)
        whole = size(most.held_bytes + most.saved_bytes)
        yield (
            "dense MLPs",
            f"{most.mlps} over {sharding.deployment.ffn} data-parallel ranks each: {whole} -> "
            f"{size(most.held_bytes)}, saved {size(most.saved_bytes)} ({most.saved_bytes:,} "
            f"bytes); gathers at most {size(max(gathered_for_mlps(sharding)))}, taken from the "
            "room for the cache",
        )


class _Estimated(NamedTuple):
    """What the table says of an estimate, or in the place of one."""

    times: Mapping[PhaseName, str]
    best_steps: str
    source: str
    assumptions: tuple[str, ...]


def _estimated(forecast: Forecast) -> _Estimated:
    match forecast:
        case Estimate():
            best = ", ".join(f"{phase.best.step} for {phase.name}" for phase in forecast.phases)
            return _Estimated(
                times={phase.name: _times(phase) for phase in forecast.phases},
                best_steps=f"; best {best}",
                source=f" (estimate for {forecast.hardware.name})",
                assumptions=forecast.assumptions,
            )
        case Abstention():
            return _Estimated(dict.fromkeys(forecast.batches, "not estimated"), "", "", ())


def _print_timelines(sheet: Sheet, timelines: Sequence[Timeline]) -> None:
    """The middle layers of each phase, to scale."""
    from layershard_cli.render.timeline import ASCII, LAYERS, UNICODE, draw

    ink = UNICODE if (sys.stdout.encoding or "").lower().startswith("utf") else ASCII
    for timeline in timelines:
        lines = draw(timeline.forward.spans if timeline.forward else (), sheet.width, ink)
        moved = "collectives of activations" if timeline.moves == "activations" else "movement"
        if lines:
            sheet.line(
                f"{timeline.phase}, {LAYERS} layers to scale ({ink.compute[0]}{ink.compute[1]} "
                f"compute of even and odd layers, {ink.stall} waiting, {ink.link[0]}{ink.link[1]} "
                f"{moved})"
            )
        for line in lines:
            sheet.drawn(line)


def _print_ledger(sheet: Sheet, sharding: Sharding) -> None:
    """What every rank of a group holds of each series, in bytes."""
    rows = []
    for group in sharding.groups:
        for series_plan in group.plan.series:
            ledger = series_plan.ledger
            rows += [
                [
                    series_plan.series.name,
                    str(group.pp_stage),
                    str(rank),
                    f"{ledger.replicated_bytes:,}",
                    f"{ledger.resident_bytes[rank]:,}",
                    f"{ledger.slot_bytes:,}",
                    f"{ledger.saved_bytes[rank]:,}",
                ]
                for rank in range(group.plan.group_size)
            ]
    titles = ("stage", "group rank", "before", "resident", "slots", "saved")
    columns = (Column("series"), *(Column(title, right=True) for title in titles))
    sheet.table("Bytes of each rank", columns, rows)


def print_heading(sheet: Sheet, sharding: Sharding, evidence: Evidence) -> None:
    """The model, where it is from, and the layout."""
    model, layout = sharding.model, sharding.deployment.layout
    about = (
        f": {model.architecture}, {model.num_layers} layers, {model.dtype}, quantization "
        f"{model.quantization} ({model.source})"
    )
    sheet.heading(model.name, about)
    if evidence.revision is not None:
        sheet.line(f"revision {evidence.revision}")
    if evidence.comparison is not None:
        sheet.line(f"checkpoint: {evidence.comparison.said} ({evidence.headers})")
    ep = "with" if sharding.deployment.ep else "without"
    sheet.line(
        f"tp {layout.tp}, dp {layout.dp}, pcp {layout.pcp}, pp {layout.pp}, {ep} expert "
        f"parallelism: {layout.world_size} ranks"
    )


def _movement(sharding: Sharding) -> str:
    config = sharding.config
    names = sharding.transport_names
    if not names:
        return "none: every rank stores every layer"
    layers = "stripes" if config.placement == "striped" else "whole layers"
    sliced = config.slice_bytes and "pull" in names
    slices = f", in slices of {config.slice_bytes:,} bytes" if sliced else ""
    keeps = any(s.series.kept_layer is not None for g in sharding.groups for s in g.plan.series)
    kept = ", but for the first one of each series" if keeps else ""
    return f"{' and '.join(names)} of {layers}{kept}{slices} (transport {config.transport})"


def _communicators(result: PlanResult) -> list[tuple[str, str]]:
    kept = communicators_of(result.planned, result.forecast.hardware)
    if kept.number == 0:
        return []
    known = f", {size(kept.nbytes)}" if kept.nbytes else ""
    return [("communicators", f"{kept.number} private a rank{known}: {kept.said}")]


def _on_a_cpu(sharding: Sharding) -> Iterator[tuple[str, str]]:
    needs = sharding.shared_needs
    if needs:
        nbytes, files = sum(need.nbytes for need in needs), max(need.pieces for need in needs)
        yield (
            "if on a CPU",
            f"/dev/shm holds {size(nbytes)} ({nbytes:,} bytes) for all ranks; a rank keeps up to "
            f"{files:,} files open there",
        )


def _times(phase: Phase) -> str:
    forward = phase.asked.forward
    return (
        f"compute {milliseconds(forward.compute)}, movement {milliseconds(forward.fetch)}, "
        f"exposed {_exposed(phase.asked.forward, phase.with_least)}"
    )


def _exposed(forward: Forward, least: Forward | None = None) -> str:
    """With the least contention, where that is another forward, and with the most."""
    exposed, share = milliseconds(forward.exposed), percent(forward.slowdown)
    if least is not None and least.exposed < forward.exposed:
        exposed = f"{milliseconds(least.exposed).removesuffix(' ms')} to {exposed}"
        if percent(least.slowdown) != share:
            share = f"{percent(least.slowdown)} to {share}"
    return f"{exposed} ({share})"
