"""Peers are looked at once a step, outside the graph: a replay runs no code of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from vllm_layershard.hosts.patch import Patch
from vllm_layershard.runtime.series import ShardedSeries

_series: WeakKeyDictionary[nn.Module, tuple[ShardedSeries, ...]] = WeakKeyDictionary()
"""Of the models that this process has sharded."""


def check_each_step(model: nn.Module, series: Sequence[ShardedSeries]) -> None:
    """From now on a step of the model begins only if the peers of all its series are there."""
    _series[model] = tuple(series)


def _check(model: nn.Module) -> None:
    for series in _series.get(model, ()):
        series.transport.check_peers()


def _checking(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        _check(self.get_model())
        return original(self, *args, **kwargs)

    return checked


def _patch(module: str, owner: str, attribute: str) -> Patch:
    is_ascends = module.startswith("vllm_ascend.")
    return Patch(
        module=module,
        owner=owner,
        attribute=attribute,
        versions="0.29 to 0.30" if is_ascends else "0.29 to 0.33",
        reason="a replayed graph of a whole forward calls no module, so that nobody would see that "
        "a rank has ended whose memory it reads, or that a reload has failed",
        removal="vLLM offers plugins a hook at the start of a worker's step",
        wrap=_checking,
    )


_OF_CUDA = (
    _patch("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "execute_model"),
    _patch("vllm.v1.worker.gpu.model_runner", "GPUModelRunner", "execute_model"),
    _patch("vllm.v1.worker.gpu_worker", "Worker", "execute_dummy_batch"),
)
"""vLLM's two model runners, and the batches of a rank without requests."""

_OF_NPUS = (
    _patch("vllm_ascend.worker.model_runner_v1", "NPUModelRunner", "execute_model"),
    _patch("vllm_ascend.worker.v2.model_runner", "NPUModelRunner", "execute_model"),
    _patch("vllm_ascend.worker.worker", "NPUWorker", "execute_dummy_batch"),
)
"""vllm-ascend's own, which override vLLM's. Read at 182b75e, August 2026, and not run."""

PATCHES = (*_OF_CUDA, *_OF_NPUS)


@cache
def check_steps(device_type: str) -> None:
    """In a worker on such a device: guard what the host has imported, or will.

    Without effect on a CPU, which has no graphs.

    Raises:
        HostError: this version of the host lacks the symbol.
    """
    for patch in {"cuda": _OF_CUDA, "npu": _OF_NPUS}.get(device_type, ()):
        patch.install_on_import()
