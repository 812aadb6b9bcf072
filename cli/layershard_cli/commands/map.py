"""`layershard map`: which rank keeps which layer."""

from __future__ import annotations

from layershard_cli import flags as flag
from layershard_cli.output import emit_json, show_progress
from layershard_cli.resolve import LayoutFlags, Options, sharding_of
from vllm_layershard.models import evidence_for, find
from vllm_layershard.planner.json_document import map_document
from vllm_layershard.planner.plan_warnings import warnings_on


def map_command(
    model: flag.ModelName,
    tp: flag.Tp = None,
    dp: flag.Dp = None,
    pcp: flag.Pcp = None,
    pp: flag.Pp = None,
    ep: flag.Ep = None,
    layers: flag.LayersNamed = None,
    prefetch_step: flag.PrefetchStep = None,
    layer_stride: flag.LayerStride = None,
    keep_first: flag.KeepFirst = False,
    placement: flag.PlacementName = None,
    transport: flag.TransportName = None,
    exact: flag.Exact = False,
    as_json: flag.AsJson = False,
) -> None:
    """Which rank keeps which layer.

    Example: layershard map --model DeepSeek-V3 --dp 8 --ep --layers o_proj
    """
    found = find(model)
    sharding, assumed = sharding_of(
        found,
        LayoutFlags(tp, dp, pcp, pp, ep),
        layers,
        Options(prefetch_step, layer_stride, placement, transport, keep_first=keep_first),
    )
    evidence, notes = evidence_for(found, sharding.model, exact, show_progress)
    warnings = (*assumed, *notes, *warnings_on(sharding, None))
    if as_json:
        emit_json(map_document(sharding, warnings, evidence))
        return
    from layershard_cli.render.tables import print_map

    print_map(sharding, warnings, evidence)
