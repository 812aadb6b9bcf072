"""The `layershard` command and its one place for errors and exit codes.

Exit codes: 0 fine; 1 only under `--check`: the plan does not pay; 2 usage, configuration or plan;
3 a model or device that is unknown or cannot be read. Data goes to stdout, messages to stderr.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer

from layershard_cli import options as flag
from layershard_cli.additional import read_additional
from layershard_cli.calibrate import calibrate_command
from layershard_cli.compare import compare_command
from layershard_cli.document import map_document, plan_document
from layershard_cli.files import write_html, write_trace
from layershard_cli.hardware import hardware_command
from layershard_cli.known import models_command
from layershard_cli.output import discard_stdout, emit, emit_json
from layershard_cli.paying import require_paying
from layershard_cli.remarks import remarks_on
from layershard_cli.request import Conditions, Layout, Load, deployment_of, sharding_of
from vllm_layershard import __version__
from vllm_layershard.errors import HardwareError, LayerShardError, ModelError
from vllm_layershard.estimate import DEFAULT, forecast, profile
from vllm_layershard.models import load_model, plan_model

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
    batch: flag.Sequences = None,
    context: flag.Context = None,
    hide_in: flag.HideIn = None,
    kv_cache_dtype: flag.KvCacheDtype = "auto",
    timeline: flag.Timeline = False,
    ledger: flag.LedgerFlag = False,
    html: flag.HtmlFile = None,
    trace: flag.TraceFile = None,
    check: flag.Check = False,
    as_json: flag.AsJson = False,
) -> None:
    """What sharding saves on each rank, and whether the movement hides.

    Example: layershard plan --model DeepSeek-V3 --dp 8 --ep --layers o_proj,q_b_proj
    """
    device = profile(DEFAULT if hardware is None else hardware)
    load = Load(tokens, batch, context, hide_in if not check or layers == ["auto"] else None)
    sharding, assumed = sharding_of(
        model,
        Layout(tp, dp, pcp, pp, ep),
        layers,
        _options(prefetch_step, layer_stride, placement),
        Conditions(device, load),
    )
    sharding.tokens_gained(kv_cache_dtype)  # refuses a dtype before anything is printed
    if hardware is None:
        assumed = (*assumed, f"assumed {device.name} devices for the times; give --hardware")
    expected = forecast(sharding, device, **load.sizes)
    warnings = (*assumed, *remarks_on(sharding, device))
    if html is not None:
        write_html(html, sharding, expected, kv_cache_dtype, warnings)
    if trace is not None:
        write_trace(trace, expected)
    if as_json:
        emit_json(plan_document(sharding, expected, kv_cache_dtype, warnings))
    else:
        from layershard_cli.tables import print_plan

        print_plan(sharding, expected, kv_cache_dtype, warnings, timeline=timeline, ledger=ledger)
    if check:
        require_paying(sharding, expected, hide_in)


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
    as_json: flag.AsJson = False,
) -> None:
    """Which rank keeps which layer.

    Example: layershard map --model DeepSeek-V3 --dp 8 --ep --layers o_proj
    """
    sharding, assumed = sharding_of(
        model,
        Layout(tp, dp, pcp, pp, ep),
        layers,
        _options(prefetch_step, layer_stride, placement),
    )
    warnings = (*assumed, *remarks_on(sharding, None))
    if as_json:
        emit_json(map_document(sharding, warnings))
        return
    from layershard_cli.tables import print_map

    print_map(sharding, warnings)


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
    as_json: flag.AsJson = False,
) -> None:
    """Check an additional-config against a model and a layout before launching it.

    Example: layershard check '{"layer_sharding": ["o_proj"]}' --model DeepSeek-V3 --dp 8 --ep
    """
    config, notes = read_additional(additional_config)
    deployment, assumed = deployment_of(Layout(tp, dp, pcp, pp, ep))
    found = load_model(model)
    sharding = plan_model(found, deployment, config)
    warnings = (*notes, *assumed, *found.notes, *remarks_on(sharding, None))
    if as_json:
        emit_json(map_document(sharding, warnings))
        return
    emit(
        f"ok: {found.name} on {deployment.layout.world_size} ranks shards "
        f"{', '.join(config.layers)} and saves at least {min(sharding.saved_bytes):,} bytes a rank"
    )
    for group in sharding.groups:
        for series_plan in group.plan.series:
            series = series_plan.series
            emit(
                f"  {series.name}: {len(series)} layers of {series.layer_bytes:,} bytes over "
                f"{group.plan.group_size} ranks, {series_plan.schedule.num_slots} slots, saves "
                f"{min(series_plan.ledger.saved_bytes):,} bytes"
            )
    for warning in warnings:
        typer.echo(f"note: {warning}", err=True)


app.command("models")(models_command)
app.command("compare")(compare_command)
app.command("hardware")(hardware_command)
app.command("calibrate")(calibrate_command)


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
        print("layershard: stdout is closed; give it somewhere to write", file=sys.stderr)
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except LayerShardError as error:
        print(f"layershard: {error}", file=sys.stderr)
        sys.exit(3 if isinstance(error, (ModelError, HardwareError)) else 2)
    except OSError as error:
        print(f"layershard: stdout cannot be written: {error.strerror}", file=sys.stderr)
        discard_stdout()
        sys.exit(2)


if __name__ == "__main__":
    run()
