"""`layershard plan`: what sharding saves on each rank, and whether the movement hides."""

from __future__ import annotations

from layershard_cli import flags as flag
from layershard_cli.output import emit_json, show_progress
from layershard_cli.resolve import LayoutFlags, Load, Options, deployment_of, names_of, sharding_of
from vllm_layershard.errors import ConfigError
from vllm_layershard.estimate import DEFAULT, Estimate, Hardware, PhaseName, forecast, profile
from vllm_layershard.estimate.capacity import may_fit
from vllm_layershard.models import FoundModel, Sharding, evidence_for, find, model_of
from vllm_layershard.planner.json_document import plan_document
from vllm_layershard.planner.phases import PREFILL, phases_of
from vllm_layershard.planner.plan_warnings import warnings_on, warnings_on_load
from vllm_layershard.planner.serve_command import launch_warnings


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
    keep_first: flag.KeepFirst = False,
    placement: flag.PlacementName = None,
    transport: flag.TransportName = None,
    slice_bytes: flag.SliceBytes = None,
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
    exact: flag.Exact = False,
    as_json: flag.AsJson = False,
) -> None:
    """What sharding saves on each rank, and whether the movement hides.

    Example: layershard plan --model DeepSeek-V3 --dp 8 --ep --layers o_proj,q_b_proj
    """
    phases = phases_of(hide_in)
    if html is not None and html == trace:
        raise ConfigError(f"--html and --trace both name {html!r}; give each a file of its own")
    device = profile(DEFAULT if hardware is None else hardware)
    found = find(model)
    load = Load(tokens, batch, context)
    flags = LayoutFlags(tp, dp, pcp, pp, ep)
    options = Options(
        prefetch_step, layer_stride, placement, transport, slice_bytes, keep_first=keep_first
    )
    if names_of(layers) == ["auto"]:
        sharding, assumed = _chosen(found, flags, options, device, load, phases)
    elif phases is not None and not check:
        raise ConfigError("--hide-in goes with --layers auto or --check")
    else:
        sharding, assumed = sharding_of(found, flags, layers, options)
    sharding.tokens_gained(kv_cache_dtype)  # refuses a dtype before anything is printed
    if hardware is None:
        assumed = (*assumed, f"assumed {device.name} devices for the times; give --hardware")
    traced = timeline or html is not None or trace is not None
    expected = forecast(sharding, device, **load.sizes, traced=traced)
    evidence, notes = evidence_for(found, sharding.model, exact, show_progress)
    warnings = (
        *assumed,
        *notes,
        *warnings_on(sharding, device),
        *warnings_on_load(sharding, device, expected.batches["decode"], kv_cache_dtype),
        *(launch_warnings(sharding) if may_fit(expected.fit) else ()),
    )
    if html is not None or trace is not None:
        from layershard_cli.render.files import write_html, write_trace

        if html is not None:
            write_html(html, sharding, expected, kv_cache_dtype, warnings)
        if trace is not None and isinstance(expected, Estimate):
            write_trace(trace, expected)
        elif trace is not None:
            warnings = (*warnings, f"{trace} was not written: nothing is estimated")
    if as_json:
        emit_json(plan_document(sharding, expected, kv_cache_dtype, warnings, evidence))
    else:
        from layershard_cli.render.tables import print_plan

        print_plan(
            sharding,
            expected,
            kv_cache_dtype,
            warnings,
            evidence,
            timeline=timeline,
            ledger=ledger,
        )
    if check:
        from layershard_cli.paying import require_paying

        require_paying(sharding, expected, phases or PREFILL)


def _chosen(
    found: FoundModel,
    flags: LayoutFlags,
    options: Options,
    device: Hardware,
    load: Load,
    hide_in: tuple[PhaseName, ...] | None,
) -> tuple[Sharding, tuple[str, ...]]:
    """`--layers auto`: the plan, and what was assumed for it and chosen."""
    from layershard_cli.auto import Conditions, auto_sharding

    model = model_of(found)
    deployment, assumed = deployment_of(flags, model)
    conditions = Conditions(device, load, hide_in)
    sharding, note = auto_sharding(model, deployment, options, conditions)
    return sharding, (*assumed, *model.notes, note)
