"""`layershard check`: an additional-config against a model and a layout, before a launch."""

from __future__ import annotations

from typing import Annotated

import typer

from layershard_cli import flags as flag
from layershard_cli.additional_config import (
    exchanging,
    read_additional,
    require_served,
    require_sharding,
    splitting,
)
from layershard_cli.output import emit, emit_json, note, show_progress
from layershard_cli.resolve import LayoutFlags
from vllm_layershard.estimate.wording import layers, slots
from vllm_layershard.planner.dense_mlps import split_dense_mlps
from vllm_layershard.planner.layer_map import map_layers
from vllm_layershard.planner.layout import Layout
from vllm_layershard.planner.results.facts import FfnFacts


def check_command(
    additional_config: Annotated[
        str,
        typer.Argument(
            help="The JSON for --additional-config, or @FILE that holds it.", show_default=False
        ),
    ],
    model: flag.ModelName,
    tp: flag.Tp = None,
    dp: flag.Dp = None,
    pcp: flag.Pcp = None,
    pp: flag.Pp = None,
    ep: flag.Ep = None,
    token_exchange: flag.TokenExchange = None,
    ffn_tp: flag.FfnTp = None,
    mtp: flag.Mtp = None,
    exact: flag.Exact = False,
    as_json: flag.AsJson = False,
) -> None:
    """Check an additional-config against a model and a layout before launching it.

    Example: layershard check '{"layer_sharding": ["o_proj"]}' --model DeepSeek-V3 --dp 8 --ep
    """
    config, stated, notes, given = read_additional(additional_config)
    ffn_tp = stated if ffn_tp is None else splitting(stated, ffn_tp)
    if config is not None and token_exchange:
        config = exchanging(config, token_exchange)
    require_served(given, config, ffn_tp)
    layout = LayoutFlags(tp, dp, pcp, pp, ep).layout
    if config is None:
        assert ffn_tp is not None, "one of the two keys is there"
        require_sharding(token_exchange=token_exchange, mtp=mtp, exact=exact)
        _check_dense_mlps(model, layout, ffn_tp, notes, as_json)
        return
    result = map_layers(
        model,
        layout=layout,
        config=config,
        ffn_tp=ffn_tp,
        mtp=mtp,
        exact=exact,
        progress=show_progress,
    )
    result = result._replace(warnings=(*notes, *result.warnings))
    if as_json:
        emit_json(result.document())
        return
    sharding, evidence = result.planned, result.evidence
    least = min(sharding.saved_bytes)
    judged = "valid, but do not enable it" if sharding.loses else "ok"
    emit(
        f"{judged}: {result.model.name} on {sharding.deployment.layout.world_size} "
        f"ranks shards {', '.join(config.layers)} and saves at least {least:,} bytes a rank"
    )
    revision = "" if result.model.revision is None else f", revision {result.model.revision}"
    emit(f"  config: {result.model.source}{revision}")
    if evidence.comparison is not None:
        emit(f"  checkpoint: {evidence.comparison.said} ({evidence.headers})")
    for group in sharding.groups:
        for series_plan in group.plan.series:
            series = series_plan.series
            kept = "" if series.kept_layer is None else f" (and layer {series.kept_layer} on each)"
            emit(
                f"  {series.name}: {layers(len(series))} of {series.layer_bytes:,} bytes over "
                f"{group.plan.group_size} ranks{kept}, {slots(series_plan.schedule.num_slots)}, "
                f"saves {min(series_plan.ledger.saved_bytes):,} bytes"
            )
    if result.ffn is not None:
        emit(f"  {_dense_mlps(result.ffn)}")
    for warning in result.warnings:
        note(warning)


def _check_dense_mlps(
    model: str, layout: Layout | None, ffn_tp: int, notes: tuple[str, ...], as_json: bool
) -> None:
    """A split without sharding."""
    result = split_dense_mlps(model, layout, ffn_tp)
    result = result._replace(warnings=(*notes, *result.warnings))
    if as_json:
        emit_json(result.document())
        return
    ranks = result.parallel.tp * result.parallel.dp * result.parallel.pp
    if result.ffn is None:
        emit(f"ok: {result.model.name} on {ranks} ranks, whose dense MLPs stay whole")
    else:
        emit(f"ok: {result.model.name} on {ranks} ranks splits {_dense_mlps(result.ffn)}")
    emit(f"  config: {result.model.source}")
    for warning in result.warnings:
        note(warning)


def _dense_mlps(ffn: FfnFacts) -> str:
    return (
        f"dense MLPs: {sum(ffn.mlps)} over {ffn.size} data-parallel ranks each, saves "
        f"{max(ffn.saved_bytes):,} bytes on a rank that has some"
    )
