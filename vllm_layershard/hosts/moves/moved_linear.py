"""MovedLinearMethod: a sharded linear of which a forward moves the weight or the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from vllm_layershard.config import KEY, LayerShardConfig
from vllm_layershard.hosts.agreed_counts import agreed_counts, tokens_of_forward
from vllm_layershard.hosts.moves.rows import computing_rows
from vllm_layershard.hosts.sharded_linear import (
    ShardedLinearMethod,
    set_method,
    take_plain_tensors,
)
from vllm_layershard.plan import ParallelLayout
from vllm_layershard.plan.move import counts_in_group, move_rule
from vllm_layershard.runtime.moves import ops
from vllm_layershard.runtime.moves.linear import MovedLinear
from vllm_layershard.runtime.moves.series import MovingSeries
from vllm_layershard.runtime.moves.striped_linear import StripedLinear
from vllm_layershard.runtime.ops import Place
from vllm_layershard.runtime.series import ShardedSeries


class MovedLinearMethod(ShardedLinearMethod):
    """The quant method of a linear that is one op: see runtime/moves/ops.py."""

    def __init__(
        self,
        inner: Any,
        linear: MovedLinear,
        place: Place,
        width: int,
        order: torch.Tensor,
    ) -> None:
        super().__init__(inner, linear.name, place)
        self._linear = linear
        self._width = width
        self._order = order

    def waited_for_by(self, block: torch.nn.Module) -> str:
        """From now on `block` waits for the weight, if it moves. Returns the key to wait for."""
        self._linear.awaited_by = type(block).__name__
        return super().waited_for_by(block)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the wrapped method does, here or on the layer's owner. Collective.

        vLLM's Transformers backend has a dimension more, in front of the tokens.
        """
        if not torch.compiler.is_compiling():
            self.has_run = True
        tokens = x.flatten(0, -2)
        out = tokens.new_empty((tokens.shape[0], self._width))
        ops.linear(tokens, bias, out, self._order, self._key)
        return out.unflatten(0, x.shape[:-1])


def moving_series(
    series: ShardedSeries, config: LayerShardConfig, layout: ParallelLayout
) -> MovingSeries | None:
    """What decides for each forward of the series what it moves; None where weights always do."""
    if config.move == "weights":
        return None
    return MovingSeries(series, move_rule(config), _agreed(series, layout))


def _agreed(series: ShardedSeries, layout: ParallelLayout) -> Callable[[int | None], Sequence[int]]:
    ranks, name = series.group.ranks, f"series {series.name}"

    def of_forward(rows: int | None) -> Sequence[int]:
        """Tensor-parallel ranks have the same tokens: there is nothing to agree on."""
        return (tokens_of_forward(f"{KEY}.move", name, rows),) * len(ranks)

    def of_ranks(rows: int | None) -> Sequence[int]:
        return counts_in_group(layout, ranks, agreed_counts(f"{KEY}.move", name))

    return of_ranks if layout.dp > 1 else of_forward


def serve_moved(module: Any, place: Place) -> None:
    """From now on the module's linear is computed where a forward's smaller thing has moved to."""
    assert place.moving is not None, "there is a choice"
    inner, prefix = module.quant_method._inner, module.prefix
    width = int(sum(module.output_partition_sizes))
    compute = partial(inner.apply, module)
    series = place.series
    if series.plan.series.rows is None:
        linear = MovedLinear(place.moving, place.position, prefix, compute)
    else:
        by_rows = computing_rows(module, inner, series, place.position)
        linear = StripedLinear(place.moving, place.position, prefix, compute, by_rows)
    ops.bind_linear(linear)
    take_plain_tensors(module)
    device = next(iter(series.weights(place.position).values())).device
    set_method(module, MovedLinearMethod(inner, linear, place, width, ops.order_on(device)))
