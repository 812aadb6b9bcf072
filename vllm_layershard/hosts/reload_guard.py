"""The guard around vLLM's reload of the weights: sharded series remember a failure half-way.

What a reload does: runtime/reload.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.after_import import after_import
from vllm_layershard.hosts.patch import Patch
from vllm_layershard.runtime.ops import bound_series
from vllm_layershard.runtime.reload import reloading


def _guarding_reload(original: Callable[..., None]) -> Callable[..., None]:
    def reload_weights(self: Any, *args: Any, **kwargs: Any) -> None:
        every_series = bound_series()
        if not every_series:
            return original(self, *args, **kwargs)
        given = inspect.signature(original).bind(self, *args, **kwargs).arguments
        if not given.get("is_checkpoint_format", True):
            raise HostError(
                f"{KEY}: with is_checkpoint_format=False vLLM writes into the tensors themselves, "
                "and the other ranks would not be told; reload from a checkpoint"
            )
        with reloading(every_series):
            return original(self, *args, **kwargs)

    return reload_weights


def _patch(module: str) -> Patch:
    return Patch(
        module=module,
        owner="GPUModelRunner",
        attribute="reload_weights",
        versions="0.29 to 0.33",
        reason="a reload that fails half-way leaves layers of two checkpoints; vLLM hands the "
        "error to its caller and serves on",
        removal="vLLM ends a worker whose reload failed, or offers plugins a hook around reloads",
        wrap=_guarding_reload,
    )


PATCHES = (_patch("vllm.v1.worker.gpu_model_runner"), _patch("vllm.v1.worker.gpu.model_runner"))
"""vLLM's two model runners. The CPU's and vllm-ascend's inherit from them."""


@cache
def guard_reloads() -> None:
    """In a worker whose model is sharded: guard the runner that vLLM has imported, or will.

    Raises:
        HostError: this version of vLLM lacks the symbol.
    """
    for patch in PATCHES:
        after_import(patch.module, patch.install)
