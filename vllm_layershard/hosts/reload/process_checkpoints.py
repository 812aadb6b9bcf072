"""The guard around vLLM's checkpoint of a worker's process, of which others take snapshots.

vLLM makes its own communicators ready for it, and knows no others. Neither a communicator of ours
nor memory of another rank that is mapped here would be there once the process is restored. Source:
vLLM 0.32, v1/worker/gpu_worker.py and distributed/parallel_state.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakSet

from torch import nn

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError
from vllm_layershard.ffn_config import FFN_KEY
from vllm_layershard.hosts.patch import Patch

_models: WeakSet[nn.Module] = WeakSet()
"""Those of this process in which ranks share weights or tokens."""


def refuse_checkpoints(model: nn.Module) -> None:
    """From now on this process is not made ready for a checkpoint while it has the model.

    Raises:
        HostError: this version of vLLM lacks the symbol.
    """
    _models.add(model)
    _guard_checkpoints()


def _refusing(original: Callable[..., None]) -> Callable[..., None]:
    def checkpoint_prepare(self: Any) -> None:
        if self.get_model() in _models:
            raise HostError(
                "a checkpoint of this worker's process (checkpoint_prepare) would hold neither the "
                "communicators nor the memory of other ranks by which its layers are shared; "
                f"leave out {KEY} and {FFN_KEY}, or start the server anew instead of restoring it"
            )
        original(self)

    return checkpoint_prepare


PATCH = Patch(
    module="vllm.v1.worker.gpu_worker",
    owner="Worker",
    attribute="checkpoint_prepare",
    versions="0.29 to 0.33",
    reason="vLLM makes its own communicators ready for a checkpoint of the process; those of ours, "
    "and memory of other ranks, would be gone once it is restored",
    removal="vLLM offers plugins a hook before a checkpoint of the process",
    wrap=_refusing,
)


@cache
def _guard_checkpoints() -> None:
    PATCH.install_on_import()
