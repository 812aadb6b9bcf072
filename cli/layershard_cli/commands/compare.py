"""`layershard compare`: several layouts of one model side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from layershard_cli import flags as flag
from layershard_cli.output import emit, emit_json
from layershard_cli.render.units import size
from layershard_cli.resolve import listed, options_of
from vllm_layershard.estimate.wording import tokens
from vllm_layershard.planner.comparison import compare_layouts
from vllm_layershard.planner.results.compare_result import (
    CompareResult,
    LayoutCapacity,
    RefusedLayout,
)


def compare_command(
    model: flag.ModelName,
    layout: Annotated[
        list[str] | None,
        typer.Option(
            "--layout",
            help="A layout such as tp8, dp8+ep or tp2dp4+ep+shard (+striped: with a part of every "
            "layer on each rank); repeat it.  [default: tp8, dp8+ep, dp8+ep+shard]",
        ),
    ] = None,
    layers: flag.LayersNamed = None,
    prefetch_step: flag.PrefetchStep = None,
    keep_first: flag.KeepFirst = False,
    move: flag.MoveName = None,
    move_weights_from: flag.MoveWeightsFrom = None,
    hardware: flag.HardwareName = None,
    kv_cache_dtype: flag.KvCacheDtype = "auto",
    mtp: flag.Mtp = None,
    as_json: flag.AsJson = False,
) -> None:
    """Which layout of a model holds the most KV-cache tokens.

    Example: layershard compare --model DeepSeek-V3 --hardware H200
    """
    result = compare_layouts(
        model,
        listed(layout),
        layers=listed(layers),
        hardware=hardware,
        kv_cache_dtype=kv_cache_dtype,
        mtp=mtp,
        **options_of(
            prefetch_step=prefetch_step,
            keep_first=keep_first,
            move=move,
            move_weights_from=move_weights_from,
        ),
    )
    if as_json:
        emit_json(result.document())
    else:
        _print(result)


def _print(result: CompareResult) -> None:
    memory = result.device.memory_bytes
    assert memory is not None, "a device without is refused"
    emit(f"{result.model.name} on {result.hardware} ({size(int(memory.value))} a device)")
    width = max(len("layout"), *(len(held.layout) for held in result.layouts))
    head = f"{'layout':{width}}  {'weights a rank':>14}  {'room for KV':>12}"
    moves = any(isinstance(held, LayoutCapacity) and held.move for held in result.layouts)
    moved = f"  {'move weights from':>17}  {'gathered':>10}" if moves else ""
    emit(f"{head}  {'tokens an engine':>16}  {'tokens in all':>13}{moved}")
    counts = [held.tokens for held in result.layouts if isinstance(held, LayoutCapacity)]
    most = max(counts, default=0)
    for held in result.layouts:
        if isinstance(held, RefusedLayout):
            emit(f"{held.layout:{width}}  refused: {held.refused}")
            continue
        room = size(held.room_bytes) if held.fits else "does not fit"
        best = "  <- most" if held.tokens == most and most else ""
        emit(
            f"{held.layout:{width}}  {size(held.weight_bytes):>14}  {room:>12}  "
            f"{held.engine_tokens:>16,}  {held.tokens:>13,}{_moved(held) if moves else ''}{best}"
        )
    for warning in result.warnings:
        emit(f"note: {warning}")


def _moved(held: LayoutCapacity) -> str:
    """From how many tokens a rank on a layout moves weights, and the bytes that a rank gathers."""
    if held.move is None:
        return f"  {'-':>17}  {'-':>10}"
    weights_from = held.move.move_weights_from
    said = "never" if weights_from is None else tokens(weights_from)
    return f"  {said:>17}  {size(held.move.gathered_bytes):>10}"
