"""The `layershard` command and its one place for errors and exit codes.

Exit codes: 0 fine; 2 usage, configuration or plan; 3 a model or device that is unknown or cannot
be read. Data goes to stdout, messages to stderr.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer

from layershard_cli import options as flag
from layershard_cli.additional import read_additional
from layershard_cli.document import map_document, plan_document
from layershard_cli.launch import launch_notes
from layershard_cli.output import (
    complain,
    discard_stdout,
    emit,
    emit_json,
    note,
    printable,
    show_progress,
)
from layershard_cli.remarks import remarks_on
from layershard_cli.request import Layout, deployment_of, sharding_of
from vllm_layershard import __version__
from vllm_layershard.errors import HardwareError, LayerShardError, ModelError
from vllm_layershard.estimate import DEFAULT, PREFILL_TOKENS, forecast, profile
from vllm_layershard.models import evidence_for, find, model_of, plan_model

_USAGE_ERROR: Any = typer.BadParameter.__base__
"""click's UsageError: newer versions of typer carry click within them."""

app = typer.Typer(
    name="layershard",
    help="Plan layer sharding for vLLM: what it saves, whether it hides, which rank owns what.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        emit(f"layershard {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Plan layer sharding for vLLM: what it saves, whether it hides, which rank owns what.

    Example: layershard plan --model DeepSeek-V3
    """


@app.command("plan")
def plan_command(
    model: flag.ModelName,
    tp: flag.Tp = None,
    dp: flag.Dp = None,
    pcp: flag.Pcp = None,
    pp: flag.Pp = None,
    ep: flag.Ep = None,
    layers: flag.Layers = None,
    prefetch_step: flag.PrefetchStep = None,
    layer_stride: flag.LayerStride = None,
    placement: flag.PlacementName = None,
    hardware: flag.HardwareName = None,
    tokens: flag.Tokens = None,
    kv_cache_dtype: flag.KvCacheDtype = "auto",
    exact: flag.Exact = False,
    as_json: flag.AsJson = False,
) -> None:
    """What sharding saves on each rank, and whether the movement hides.

    Example: layershard plan --model DeepSeek-V3 --dp 8 --ep --layers o_proj,q_b_proj
    """
    device = profile(DEFAULT if hardware is None else hardware)
    found = find(model)
    sharding, assumed = sharding_of(
        found,
        Layout(tp, dp, pcp, pp, ep),
        layers,
        _options(prefetch_step, layer_stride, placement),
    )
    sharding.tokens_gained(kv_cache_dtype)  # refuses a dtype before anything is printed
    if hardware is None:
        assumed = (*assumed, f"assumed {device.name} devices for the times; give --hardware")
    expected = forecast(sharding, device, PREFILL_TOKENS if tokens is None else tokens)
    evidence, notes = evidence_for(found, sharding.model, exact, show_progress)
    warnings = (*assumed, *notes, *remarks_on(sharding, device), *launch_notes(sharding))
    if as_json:
        emit_json(plan_document(sharding, expected, kv_cache_dtype, warnings, evidence))
        return
    from layershard_cli.tables import print_plan

    print_plan(sharding, expected, kv_cache_dtype, warnings, evidence)


@app.command("map")
def map_command(
    model: flag.ModelName,
    tp: flag.Tp = None,
    dp: flag.Dp = None,
    pcp: flag.Pcp = None,
    pp: flag.Pp = None,
    ep: flag.Ep = None,
    layers: flag.Layers = None,
    prefetch_step: flag.PrefetchStep = None,
    layer_stride: flag.LayerStride = None,
    placement: flag.PlacementName = None,
    exact: flag.Exact = False,
    as_json: flag.AsJson = False,
) -> None:
    """Which rank keeps which layer.

    Example: layershard map --model DeepSeek-V3 --dp 8 --ep --layers o_proj
    """
    found = find(model)
    sharding, assumed = sharding_of(
        found,
        Layout(tp, dp, pcp, pp, ep),
        layers,
        _options(prefetch_step, layer_stride, placement),
    )
    evidence, notes = evidence_for(found, sharding.model, exact, show_progress)
    warnings = (*assumed, *notes, *remarks_on(sharding, None))
    if as_json:
        emit_json(map_document(sharding, warnings, evidence))
        return
    from layershard_cli.tables import print_map

    print_map(sharding, warnings, evidence)


@app.command("check")
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
    deployment, assumed = deployment_of(Layout(tp, dp, pcp, pp, ep))
    found = find(model)
    planned = model_of(found)
    sharding = plan_model(planned, deployment, config)
    evidence, notes = evidence_for(found, planned, exact, show_progress)
    warnings = (*alone, *assumed, *planned.notes, *notes, *remarks_on(sharding, None))
    if as_json:
        emit_json(map_document(sharding, warnings, evidence))
        return
    emit(
        f"ok: {printable(planned.name)} on {deployment.layout.world_size} ranks shards "
        f"{', '.join(config.layers)} and saves at least {min(sharding.saved_bytes):,} bytes a rank"
    )
    revision = "" if found.revision is None else f", revision {found.revision}"
    emit(printable(f"  config: {found.source}{revision}"))
    if evidence.comparison is not None:
        emit(printable(f"  checkpoint: {evidence.comparison.said} ({evidence.headers})"))
    for group in sharding.groups:
        for series_plan in group.plan.series:
            series = series_plan.series
            emit(
                f"  {series.name}: {len(series)} layers of {series.layer_bytes:,} bytes over "
                f"{group.plan.group_size} ranks, {series_plan.schedule.num_slots} slots, saves "
                f"{min(series_plan.ledger.saved_bytes):,} bytes"
            )
    for warning in warnings:
        note(warning)


def _options(
    prefetch_step: int | None, layer_stride: int | None, placement: str | None
) -> dict[str, Any]:
    return {
        "prefetch_step": prefetch_step,
        "layer_stride": layer_stride,
        "placement": placement,
    }


def run() -> None:
    """The console script: runs the app; every expected error ends in one message here."""
    if sys.stdout is None:
        complain("stdout is closed; give it somewhere to write")
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except _USAGE_ERROR as error:
        error.message = printable(error.message)
        error.show()
        sys.exit(error.exit_code)
    except LayerShardError as error:
        complain(str(error))
        sys.exit(3 if isinstance(error, (ModelError, HardwareError)) else 2)
    except OSError as error:
        complain(f"stdout cannot be written: {error.strerror}")
        discard_stdout()
        sys.exit(2)


if __name__ == "__main__":
    run()
