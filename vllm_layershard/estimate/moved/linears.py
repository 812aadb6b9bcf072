"""The linears of a sharding that move, those that are alike on a pipeline stage together."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.moved.bytes_moved import BytesMoved
from vllm_layershard.estimate.nodes import Spread
from vllm_layershard.estimate.transfer import spread_of
from vllm_layershard.models import Model, Sharding
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.layer_weights import layer_linears
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import Linear
from vllm_layershard.plan.linear import suffix_of


class Moved(NamedTuple):
    """Linears of one series of a pipeline stage, in so many layers; `linear` stands for all.

    `suffixes` are their names within each of these layers. The global ranks `computing` them for
    others are the owners, or all where each has rows. `largest_part` is the share of a layer
    that the rank which stores most of it has: 1 for an owner. `by_rows`: each rank computes some
    rows for all.
    """

    name: str
    pp_stage: int
    layer_ids: tuple[int, ...]
    suffixes: tuple[str, ...]
    shape: Shape
    linear: Linear
    spread: Spread
    traffic: BytesMoved
    largest_part: float
    by_rows: bool
    computing: tuple[int, ...]

    def gathered_bytes(self, tokens: int) -> int:
        """Memory of all ranks' tokens and their results, on the rank that computes most."""
        if self.by_rows:
            return self.traffic.gathered_by_output(tokens, self.largest_part)
        return self.traffic.gathered_by_owner(tokens)


def moved_linears(sharding: Sharding, hardware: Hardware) -> tuple[Moved, ...]:
    """By stage, then by series. A layer whose weight stays on every rank is none of them."""
    model, element = sharding.model, DTYPE_BYTES[sharding.model.dtype]
    found = []
    for group in sharding.groups:
        spread = spread_of(group, hardware)
        for series_plan, members in zip(group.plan.series, group.linears, strict=True):
            if not series_plan.moves:
                continue
            by_rows = series_plan.series.rows is not None
            parts = [end - start for start, end in series_plan.stripes]
            layer_bytes = series_plan.series.layer_bytes
            shape, linear = _with_shape(model, sharding, members[0])
            found.append(
                Moved(
                    name=series_plan.series.name,
                    pp_stage=group.pp_stage,
                    layer_ids=series_plan.series.layer_ids,
                    suffixes=tuple(suffix_of(member.prefix) for member in members),
                    shape=shape,
                    linear=linear,
                    spread=spread,
                    traffic=BytesMoved(
                        ranks=group.plan.group_size,
                        inner=shape.inner,
                        rows=shape.rows,
                        element=element,
                        weight=layer_bytes,
                    ),
                    largest_part=max(parts, default=layer_bytes) / layer_bytes,
                    by_rows=by_rows,
                    computing=tuple(
                        rank
                        for ranks in group.ranks
                        for group_rank, rank in enumerate(ranks)
                        if by_rows or series_plan.owned_layers(group_rank)
                    ),
                )
            )
    return tuple(found)


def _with_shape(model: Model, sharding: Sharding, linear: Linear) -> tuple[Shape, Linear]:
    segments = layer_linears(model.blueprint, linear.layer_id, sharding.deployment)
    return next(pair for segment in segments for pair in segment if pair[1].prefix == linear.prefix)
