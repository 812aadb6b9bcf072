"""Each weight that is moved is waited for, and read where it arrives: else an error by name.

Note [Read past the quant method]
A model may read a linear's weight itself, in a kernel of its own, and never call the quant method
that waits. What it reads then is whatever the slot holds. Which models do so is not listed: a
weight that was moved and not waited for is found at the start of the next forward. The first
forward is vLLM's profile run, whose result nobody sees, and no graph has been captured by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.tensors import held


def require_reads(series: ShardedSeries, linears: Sequence[Any], *, traced: bool) -> None:
    """From now on refuse a forward after one that has not read what was moved.

    `linears` are the modules, by position. If ops of vLLM are `traced` with the model, linears
    within them are not seen as they run.
    """
    if series.plan.moves:
        series.on_forward_start = _Reads(series, linears, traced=traced).check


class _Reads:
    """Of one series: looks after each forward, and after the first at what the modules hold."""

    def __init__(self, series: ShardedSeries, linears: Sequence[Any], *, traced: bool) -> None:
        self._series = series
        self._linears = linears
        self._traced = traced
        self._ended = -1
        """Forwards that have ended."""

    def check(self, unread: Sequence[int]) -> None:
        """At the start of a forward. `unread` are the last one's positions that none waited for.

        Raises:
            HostError: names a linear whose weight is read elsewhere, or not at all.
        """
        self._ended += 1
        for position in unread:
            raise HostError(
                f"{KEY}: {self._linears[position].prefix}: its weight was moved, and a forward did "
                "not wait for it: the model reads it outside its quant method, or skips the "
                "linear; leave it out"
            )
        if self._ended == 1:
            for position, linear in enumerate(self._linears):
                self._check_first(position, linear)

    def _check_first(self, position: int, linear: Any) -> None:
        holds = held(linear)
        for name, served in self._series.weights(position).items():
            if name not in holds or holds[name].data_ptr() != served.data_ptr():
                raise HostError(
                    f"{KEY}: {linear.prefix}: its tensor {name!r} was replaced after it was loaded "
                    "and does not see the weight move; leave it out"
                )
        method = linear.quant_method
        if not (self._traced or method.waits_itself or method.has_run):
            raise HostError(
                f"{KEY}: {linear.prefix}: a forward did not run it: the model reads its weight "
                "outside its quant method, or skips the linear; leave it out"
            )
