"""Each weight that is moved is waited for, and read where it arrives: else an error by name.

Note [Read past the quant method]
A model may read a linear's weight itself, in a kernel of its own, and never call the quant method
that waits. What it reads then is whatever the slot holds. Which models do so is not listed: a
weight that was moved and not waited for is found at the start of the next forward. The first
forward is vLLM's profile run, whose result nobody sees, and no graph has been captured by then.

On an NPU attention returns at once in forwards that have no metadata for it: vllm-ascend's profile
run and some dummy batches. Its linears do not run then, so these forwards are not judged. Source:
vllm-ascend at 182b75e, attention/mla_v1.py, attention/sfa_v1.py, `if attn_metadata is None`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vllm.forward_context import get_forward_context, is_forward_context_available

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.tensors import held

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def runs_all_on(device_type: str) -> Callable[[], bool]:
    """What tells whether the forward that runs now runs every linear on a device of this type."""
    return _has_metadata if device_type == "npu" else lambda: True


def _has_metadata() -> bool:
    return is_forward_context_available() and bool(get_forward_context().attn_metadata)


def experts_are_traced(vllm_config: VllmConfig) -> bool:
    """Whether a compiler looks into what the MoE blocks run; elsewhere each linear is seen to run.

    On CUDA an op hides the experts from it. Mode 0 and None: nothing is compiled.
    """
    is_compiled = bool(vllm_config.compilation_config.mode)
    return is_compiled and vllm_config.device_config.device_type != "cuda"


def require_reads(
    series: ShardedSeries,
    linears: Sequence[Any],
    *,
    traced: bool,
    runs_all: Callable[[], bool] = lambda: True,
) -> None:
    """From now on refuse a forward after one that has not read what was moved.

    `linears` are the modules, by position. If ops of vLLM are `traced` with the model, linears
    within them are not seen as they run. `runs_all` is asked in each forward whether it runs every
    linear; one that does not is not judged.
    """
    if series.plan.moves:
        series.on_forward_start = _Reads(series, linears, runs_all, traced=traced).check


class _Reads:
    """Of one series: looks after each forward, and after the first at what the modules hold."""

    def __init__(
        self,
        series: ShardedSeries,
        linears: Sequence[Any],
        runs_all: Callable[[], bool],
        *,
        traced: bool,
    ) -> None:
        self._series = series
        self._linears = linears
        self._runs_all = runs_all
        self._traced = traced
        self._judged = False
        """Whether the forward that runs is to have read all."""
        self._ended = 0
        """Such forwards that have ended."""

    def check(self, unread: Sequence[int]) -> None:
        """At the start of a forward. `unread` are the last one's positions that none waited for.

        Raises:
            HostError: names a linear whose weight is read elsewhere, or not at all.
        """
        was_judged, self._judged = self._judged, self._runs_all()
        if not was_judged:
            return
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
