"""`layershard plan`: what sharding saves on each rank, and whether the movement hides."""

from __future__ import annotations

from os.path import realpath

import typer

from layershard_cli import flags as flag
from layershard_cli.output import emit_json, show_progress, tell
from layershard_cli.resolve import LayoutFlags, listed, options_of
from vllm_layershard.errors import ConfigError
from vllm_layershard.planner.options import AUTO, names_of
from vllm_layershard.planner.paying import PREFILL, phases_of
from vllm_layershard.planner.plan import plan_model
from vllm_layershard.planner.results.plan_result import PlanResult


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
    token_exchange: flag.TokenExchange = None,
    move: flag.MoveName = None,
    move_weights_from: flag.MoveWeightsFrom = None,
    slice_bytes: flag.SliceBytes = None,
    ffn_tp: flag.FfnTp = None,
    hardware: flag.HardwareName = None,
    tokens: flag.Tokens = None,
    prompt: flag.Prompt = None,
    cached: flag.Cached = None,
    batch: flag.Sequences = None,
    context: flag.Context = None,
    hide_in: flag.HideIn = None,
    kv_cache_dtype: flag.KvCacheDtype = "auto",
    mtp: flag.Mtp = None,
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
    phases = None if hide_in is None else phases_of(hide_in)
    if html is not None and trace is not None and realpath(html) == realpath(trace):
        raise ConfigError(f"--html and --trace both name {html!r}; give each a file of its own")
    chooses = names_of(layers or ()) == [AUTO]
    result = plan_model(
        model,
        listed(layers),
        LayoutFlags(tp, dp, pcp, pp, ep).layout,
        hardware=hardware,
        tokens=tokens,
        batch=batch,
        context=context,
        prompt=prompt,
        cached=cached,
        hide_in=None if check and not chooses else phases,
        kv_cache_dtype=kv_cache_dtype,
        ffn_tp=ffn_tp,
        mtp=mtp,
        exact=exact,
        progress=show_progress,
        traced=timeline or html is not None or trace is not None,
        **options_of(
            prefetch_step=prefetch_step,
            layer_stride=layer_stride,
            keep_first=keep_first,
            placement=placement,
            transport=transport,
            token_exchange=listed(token_exchange),
            move=move,
            move_weights_from=move_weights_from,
            slice_bytes=slice_bytes,
        ),
    )
    result = _written(result, html, trace)
    if as_json:
        emit_json(result.document())
    else:
        from layershard_cli.render.tables import print_plan

        print_plan(result, timeline=timeline, ledger=ledger)
    failures = result.failures(phases or PREFILL) if check else ()
    if failures:
        tell(f"check failed: {'; '.join(failures)}")
        raise typer.Exit(1)


def _written(result: PlanResult, html: str | None, trace: str | None) -> PlanResult:
    """Write the files that are asked for; the result warns of one that was not written."""
    if html is None and trace is None:
        return result
    from layershard_cli.render.files import write_html, write_trace

    if html is not None:
        write_html(html, result)
    if trace is None:
        return result
    from vllm_layershard.planner.results.timelines import timelines_of

    timelines = timelines_of(result.planned, result.forecast)
    missing = [f"{trace} has no {one.phase}" for one in timelines if one.forward is None]
    warnings = [f"{text}: how long its activations move is not estimated" for text in missing]
    if len(missing) < len(timelines):
        write_trace(trace, timelines)
    else:
        warnings = [f"{trace} was not written: nothing is estimated"]
    return result._replace(warnings=(*result.warnings, *warnings))
