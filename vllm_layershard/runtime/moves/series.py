"""MovingSeries: a sharded series of which each forward moves either the weights or the tokens.

Note [Either, as a whole]
What a forward moves is decided at the boundary of the series' first position, from counts that are
the same on all ranks, and holds until its last position. A forward that moves tokens starts no
movement of a weight, waits for none and reads no slot. Nothing is remembered from one forward to
the next, so forwards of either kind follow each other in any order.

Note [Room for what is gathered]
A host measures the memory of its largest forward once, before it gives the rest to a cache. That
forward moves weights, so it gathers nothing. What the largest forward of the other kind gathers may
be more than all that it has. So in the first forward that moves weights each rank computes as many
rows as it ever will for all, beside the forward's own: that is the peak, kernels' room included.
At its start, in one order on all ranks, the communicator of the tokens is used once. It would else
be made in a later forward, in memory that the cache has by then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vllm_layershard.plan.move import MoveRule
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.ranks.rows import take_room
from vllm_layershard.runtime.series import ShardedSeries


class MovingSeries:
    """`agreed(rows)` says how many tokens each rank of the group has in the forward that runs now.

    It is asked once a forward, and says the same on all ranks. `rows` is this rank's own number, as
    far as the activation at the boundary tells it, else None.
    """

    def __init__(
        self,
        series: ShardedSeries,
        rule: MoveRule,
        agreed: Callable[[int | None], Sequence[int]],
    ) -> None:
        self.series = series
        self.counts: tuple[int, ...] = ()
        self.moves_weights = True
        self.rows_to_try = 0
        """Rows of all ranks that the next linear shall compute for their room alone; see [Room for
        what is gathered]. Whoever has done it sets it to 0."""
        self._has_tried = False
        self._rule = rule
        self._agreed = agreed

    def reach(self, position: int, rows: int | None) -> None:
        """At the boundary of `position`, with so many rows: start what this forward moves ahead.

        Raises:
            TransportError: a rank of the group is gone, or was not given the weights of a reload.
            Others: what `agreed` raises.
        """
        if position == 0:
            self._begin(rows)
        if self.moves_weights:
            self.series.reach(position)

    def _begin(self, rows: int | None) -> None:
        self.counts = tuple(self._agreed(rows))
        series = self.series
        # Where every rank stores every layer, nothing moves in either direction.
        self.moves_weights = not series.plan.moves or self._rule.moves_weights(self.counts)
        self.rows_to_try = 0
        if self.moves_weights:
            if series.plan.moves and not self._has_tried:
                self._has_tried = True
                self.rows_to_try = self._rule.most_tokens * len(self.counts)
                if self.rows_to_try and isinstance(series.group, RankGroup):
                    take_room(series.group, next(iter(series.weights(0).values())).device)
            return
        series.begin()
        series.counters.activation_forwards += 1
        series.drain()  # a former forward may have skipped a linear, and tokens may share its group

    def leave(self, position: int) -> None:
        """Where no weight was waited for: the linear of `position` has its results."""
        if position == len(self.series.plan.series) - 1:
            self.series.on_forward_end()
