"""Tables: a plan and a map for a person. The only module that imports rich."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from layershard_cli.launch import launch_command
from layershard_cli.output import emit, leave_closed_pipe, printable
from layershard_cli.units import milliseconds, size, span
from vllm_layershard.estimate import Forecast, Phase
from vllm_layershard.estimate.verdict import percent
from vllm_layershard.models import Evidence, GroupPlan, Sharding
from vllm_layershard.plan import EVERY_RANK


def print_plan(
    sharding: Sharding,
    forecast: Forecast,
    kv_cache_dtype: str,
    warnings: tuple[str, ...],
    evidence: Evidence,
    *,
    timeline: bool = False,
    ledger: bool = False,
) -> None:
    """`layershard plan`."""
    console = _console()
    _print_heading(console, sharding, evidence)
    table = Table(title="What is sharded", title_justify="left")
    for column in ("series", "stage", "ranks", "layers", "layer", "slots", "saved per rank"):
        table.add_column(column, justify="left" if column == "series" else "right", overflow="fold")
    for group in sharding.groups:
        for series_plan in group.plan.series:
            saved = series_plan.ledger.saved_bytes
            table.add_row(
                series_plan.series.name,
                str(group.pp_stage),
                str(group.plan.group_size),
                str(len(series_plan.series)),
                size(series_plan.series.layer_bytes),
                f"{series_plan.schedule.num_slots} = {size(series_plan.ledger.slot_bytes)}",
                span(min(saved), max(saved)),
            )
    console.print(table)

    rank = sharding.binding_rank
    saved_bytes, held = sharding.saved_bytes[rank], sharding.weight_bytes[rank]
    gained = sharding.tokens_gained(kv_cache_dtype)
    per_token = sharding.kv_bytes_per_token(kv_cache_dtype, rank)
    summary = Table.grid(padding=(0, 2))
    summary.add_row("weights per rank", f"{size(held.total)} -> {size(held.total - saved_bytes)}")
    summary.add_row("saved per rank", f"at least {size(saved_bytes)} ({saved_bytes:,} bytes)")
    summary.add_row("KV cache", f"{gained:,} more tokens, at {per_token:,} bytes a token")
    for phase in forecast.phases:
        summary.add_row(f"{phase.name}, {phase.batch.tokens:,} tokens", _times(phase))
    recommended = ", ".join(
        f"{phase.recommended_step} for {phase.name}"
        for phase in forecast.phases
        if phase.recommended_step is not None
    )
    summary.add_row(
        "prefetch_step",
        f"{sharding.config.prefetch_step}" + (f"; best {recommended}" if recommended else ""),
    )
    verdict = f"{forecast.verdict} (estimate for {forecast.hardware.name})"
    summary.add_row("verdict", _verbatim(verdict))
    console.print(summary)
    if timeline:
        _print_timelines(console, forecast)
    if ledger:
        _print_ledger(console, sharding)
    console.print(
        "Layer bytes and savings are exact, totals and KV bytes follow from formulas, times are "
        "assumed:"
        if forecast.assumptions
        else "Layer bytes and savings are exact, totals and KV bytes follow from formulas.",
    )
    for assumption in forecast.assumptions:
        console.print(_verbatim(f"  - {assumption}"))
    _print_warnings(console, warnings)
    console.print("Launch:")
    emit(printable(launch_command(sharding, kv_cache_dtype)))


def _print_timelines(console: Console, forecast: Forecast) -> None:
    """The middle layers of each phase, to scale."""
    from layershard_cli.timeline import ASCII, LAYERS, UNICODE, draw

    ink = UNICODE if (sys.stdout.encoding or "").lower().startswith("utf") else ASCII
    for phase in forecast.phases:
        lines = draw(phase, console.width, ink)
        if lines:
            console.print(
                f"{phase.name}, {LAYERS} layers to scale ({ink.compute[0]}{ink.compute[1]} compute "
                f"of even and odd layers, {ink.stall} waiting, {ink.link[0]}{ink.link[1]} movement)"
            )
        for line in lines:
            console.print(line, highlight=False, markup=False, no_wrap=True, crop=True)


def _print_ledger(console: Console, sharding: Sharding) -> None:
    """What every rank of a group holds of each series, in bytes."""
    table = Table(title="Bytes of each rank", title_justify="left")
    for column in ("series", "stage", "group rank", "before", "resident", "slots", "saved"):
        table.add_column(column, justify="left" if column == "series" else "right", overflow="fold")
    for group in sharding.groups:
        for series_plan in group.plan.series:
            ledger = series_plan.ledger
            for rank in range(group.plan.group_size):
                table.add_row(
                    series_plan.series.name,
                    str(group.pp_stage),
                    str(rank),
                    f"{ledger.replicated_bytes:,}",
                    f"{ledger.resident_bytes[rank]:,}",
                    f"{ledger.slot_bytes:,}",
                    f"{ledger.saved_bytes[rank]:,}",
                )
    console.print(table)


def print_map(sharding: Sharding, warnings: tuple[str, ...], evidence: Evidence) -> None:
    """`layershard map`."""
    console = _console()
    _print_heading(console, sharding, evidence)
    for group in sharding.groups:
        _print_owners(console, sharding, group)
        _print_layers(console, group)
    _print_warnings(console, warnings)


def _print_owners(console: Console, sharding: Sharding, group: GroupPlan) -> None:
    """The layers of each rank."""
    title = f"Layers that each rank keeps (pipeline stage {group.pp_stage})"
    table = Table(title=title, title_justify="left")
    table.add_column("global ranks", overflow="fold")
    for series_plan in group.plan.series:
        table.add_column(series_plan.series.name, overflow="fold")
    for rank in range(group.plan.group_size):
        table.add_row(
            ", ".join(str(ranks[rank]) for ranks in group.ranks),
            *(
                " ".join(map(str, series_plan.owned_layers(rank)))
                for series_plan in group.plan.series
            ),
        )
    console.print(table)


def _print_layers(console: Console, group: GroupPlan) -> None:
    """The owner of each layer."""
    title = f"Rank that keeps each layer (pipeline stage {group.pp_stage})"
    table = Table(title=title, title_justify="left")
    table.add_column("layer", justify="right", overflow="fold")
    owners: list[dict[int, int]] = []
    for series_plan in group.plan.series:
        table.add_column(series_plan.series.name, overflow="fold")
        owners.append(dict(zip(series_plan.series.layer_ids, series_plan.owner, strict=True)))
    for layer_id in sorted({layer_id for by_layer in owners for layer_id in by_layer}):
        cells = []
        for by_layer in owners:
            owner = by_layer.get(layer_id)
            if owner is None:
                cells.append("-")
            elif owner == EVERY_RANK:
                cells.append("every rank")
            else:
                cells.append(", ".join(str(ranks[owner]) for ranks in group.ranks))
        table.add_row(str(layer_id), *cells)
    console.print(table)


def _print_heading(console: Console, sharding: Sharding, evidence: Evidence) -> None:
    model, layout = sharding.model, sharding.deployment.layout
    about = (
        f": {model.architecture}, {model.num_layers} layers, {model.dtype}, quantization "
        f"{model.quantization} ({model.source})"
    )
    console.print(Text.assemble((printable(model.name), "bold"), printable(about)))
    if evidence.revision is not None:
        console.print(_verbatim(f"revision {evidence.revision}"))
    if evidence.comparison is not None:
        said = evidence.comparison.said
        console.print(_verbatim(f"checkpoint: {said} ({evidence.headers})"))
    ep = "with" if sharding.deployment.ep else "without"
    console.print(
        f"tp {layout.tp}, dp {layout.dp}, pcp {layout.pcp}, pp {layout.pp}, {ep} expert "
        f"parallelism: {layout.world_size} ranks",
        highlight=False,
    )


def _print_warnings(console: Console, warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        console.print(Text.assemble(("note:", "yellow"), " ", printable(warning)))


def _verbatim(text: str) -> Text:
    """Text that is no markup, with control characters escaped."""
    return Text(printable(text))


def _times(phase: Phase) -> str:
    forward = phase.forward
    if forward is None:
        return "not estimated"
    return (
        f"compute {milliseconds(forward.compute)}, movement {milliseconds(forward.fetch)}, "
        f"exposed {milliseconds(forward.exposed)} ({percent(forward.slowdown)})"
    )


class _Console(Console):
    """A console that ends quietly when its reader does."""

    def on_broken_pipe(self) -> None:
        """Called by rich when stdout is closed."""
        leave_closed_pipe()


def _console() -> Console:
    return _Console()
