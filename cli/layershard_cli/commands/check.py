"""`layershard check`: an additional-config against a model and a layout, before a launch."""

from __future__ import annotations

from typing import Annotated

import typer

from layershard_cli import flags as flag
from layershard_cli.additional_config import read_additional
from layershard_cli.output import emit, emit_json, note, printable, show_progress
from layershard_cli.resolve import LayoutFlags, deployment_of
from vllm_layershard.estimate.wording import layers, slots
from vllm_layershard.models import evidence_for, find, model_of, plan_model
from vllm_layershard.planner.json_document import map_document
from vllm_layershard.planner.plan_warnings import warnings_on


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
    exact: flag.Exact = False,
    as_json: flag.AsJson = False,
) -> None:
    """Check an additional-config against a model and a layout before launching it.

    Example: layershard check '{"layer_sharding": ["o_proj"]}' --model DeepSeek-V3 --dp 8 --ep
    """
    config, alone = read_additional(additional_config)
    found = find(model)
    planned = model_of(found)
    deployment, assumed = deployment_of(LayoutFlags(tp, dp, pcp, pp, ep), planned)
    sharding = plan_model(planned, deployment, config)
    evidence, notes = evidence_for(found, planned, exact, show_progress)
    warnings = (*alone, *assumed, *planned.notes, *notes, *warnings_on(sharding, None))
    if as_json:
        emit_json(map_document(sharding, warnings, evidence))
        return
    least = min(sharding.saved_bytes)
    judged = "valid, but do not enable it" if sharding.loses else "ok"
    emit(
        f"{judged}: {printable(planned.name)} on {deployment.layout.world_size} ranks shards "
        f"{', '.join(config.layers)} and saves at least {least:,} bytes a rank"
    )
    revision = "" if found.revision is None else f", revision {found.revision}"
    emit(printable(f"  config: {found.source}{revision}"))
    if evidence.comparison is not None:
        emit(printable(f"  checkpoint: {evidence.comparison.said} ({evidence.headers})"))
    for group in sharding.groups:
        for series_plan in group.plan.series:
            series = series_plan.series
            kept = "" if series.kept_layer is None else f" (and layer {series.kept_layer} on each)"
            emit(
                f"  {series.name}: {layers(len(series))} of {series.layer_bytes:,} bytes over "
                f"{group.plan.group_size} ranks{kept}, {slots(series_plan.schedule.num_slots)}, "
                f"saves {min(series_plan.ledger.saved_bytes):,} bytes"
            )
    for warning in warnings:
        note(warning)
