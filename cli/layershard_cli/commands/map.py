"""`layershard map`: which rank stores which layer."""

from __future__ import annotations

from layershard_cli import flags as flag
from layershard_cli.output import emit_json, show_progress
from layershard_cli.resolve import LayoutFlags, listed, options_of
from vllm_layershard.planner.layer_map import map_layers


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
    token_exchange: flag.TokenExchange = None,
    move: flag.MoveName = None,
    move_weights_from: flag.MoveWeightsFromGiven = None,
    exact: flag.Exact = False,
    as_json: flag.AsJson = False,
) -> None:
    """Which rank stores which layer.

    Example: layershard map --model DeepSeek-V3 --dp 8 --ep --layers o_proj
    """
    result = map_layers(
        model,
        listed(layers),
        LayoutFlags(tp, dp, pcp, pp, ep).layout,
        exact=exact,
        progress=show_progress,
        **options_of(
            prefetch_step=prefetch_step,
            layer_stride=layer_stride,
            keep_first=keep_first,
            placement=placement,
            transport=transport,
            token_exchange=listed(token_exchange),
            move=move,
            move_weights_from=move_weights_from,
        ),
    )
    if as_json:
        emit_json(result.document())
        return
    from layershard_cli.render.owners import print_map

    print_map(result)
