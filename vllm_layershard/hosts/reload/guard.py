"""The guard around vLLM's reload of the weights: all ranks that share reload together.

What a reload does: the note in runtime/reload/reloads.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final
from weakref import WeakKeyDictionary

from torch import nn

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.patch import Patch, lacking
from vllm_layershard.hosts.reload.checkpoint import checked_checkpoint
from vllm_layershard.hosts.reload.unfinished import discard_unfinished
from vllm_layershard.runtime.reload import Reloads

_reloads: WeakKeyDictionary[nn.Module, Reloads] = WeakKeyDictionary()
"""Of the models that this process has sharded."""


def reload_together(model: nn.Module, reloads: Reloads) -> None:
    """From now on the model's weights are reloaded in one act of all ranks."""
    _reloads[model] = reloads


_VERSIONS: Final = "0.29 to 0.33"
_ASKED: Final = ("weights_iterator", "weights_path", "is_checkpoint_format")
"""The parameters that say from where to reload, and what."""


def _guarding_reload(original: Callable[..., None]) -> Callable[..., None]:
    parameters = inspect.signature(original).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        # The newer runner's, up to vLLM 0.31: it calls the older one's, which asks.
        return lambda self, *args, **kwargs: original(self, *args, **kwargs)
    for name in _ASKED:
        if name not in parameters:
            symbol = f"{original.__module__}.{original.__qualname__}({name}=)"
            raise lacking("vllm", symbol, _VERSIONS)

    def reload_weights(self: Any, *args: Any, **kwargs: Any) -> None:
        reloads = _reloads.get(self.get_model())
        if reloads is None:
            return original(self, *args, **kwargs)
        given = inspect.signature(original).bind(self, *args, **kwargs).arguments
        if not given.get("is_checkpoint_format", True):
            raise HostError(
                f"{KEY}: with is_checkpoint_format=False vLLM writes into the tensors themselves, "
                "and the other ranks would not be told; reload from a checkpoint"
            )
        iterated = given.get("weights_iterator") is not None
        checkpoint: Callable[[], Any] = (
            (lambda: "weights_iterator")
            if iterated
            else partial(checked_checkpoint, self.vllm_config, given.get("weights_path"))
        )
        with reloads.reloading(checkpoint):
            try:
                return original(self, *args, **kwargs)
            except BaseException:
                try:
                    discard_unfinished(self.get_model())
                except HostError as error:
                    reloads.forbid(error)
                raise

    return reload_weights


def _patch(module: str) -> Patch:
    return Patch(
        module=module,
        owner="GPUModelRunner",
        attribute="reload_weights",
        versions=_VERSIONS,
        reason="vLLM reloads each rank by itself; ranks that share weights would mix those of two "
        "checkpoints meanwhile, and for good where one rank fails half-way",
        removal="vLLM offers plugins a hook around reloads, in which all ranks can meet",
        wrap=_guarding_reload,
    )


PATCHES = (_patch("vllm.v1.worker.gpu_model_runner"), _patch("vllm.v1.worker.gpu.model_runner"))
"""vLLM's two model runners. The CPU's and vllm-ascend's inherit from them."""


@cache
def guard_reloads() -> None:
    """In a worker whose model is sharded: guard the runner that vLLM has imported, or will.

    Raises:
        HostError: this version of vLLM lacks the symbol, or a parameter of it.
    """
    for patch in PATCHES:
        patch.install_on_import()
