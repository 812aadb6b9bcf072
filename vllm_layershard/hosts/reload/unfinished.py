"""What vLLM holds of a reload that failed half-way, and would go on with in the next one."""

from __future__ import annotations

from torch import nn

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError


def discard_unfinished(model: nn.Module) -> None:
    """Give each layer that waits for the rest of its weights the tensors that it had before.

    vLLM (0.29 to 0.33) collects the tensors of a fused linear until all are there. It forgets none
    where a reload fails, and takes a layer that has some for one that has begun: the next reload
    would fill `qkv_proj` with the former `q` and the new `k`, and drop the new `v`.

    Raises:
        HostError: this version of vLLM collects them otherwise.
    """
    try:
        from vllm.model_executor.model_loader.reload import layerwise

        for layer in model.modules():
            info = layerwise.LAYERWISE_INFO.get(layer)
            if info is not None and info.can_load():
                if info.kernel_tensors is not None:
                    layerwise._place_kernel_tensors(layer, info)
                info.reset()
        layerwise.LOADING_LAYERS.clear()
    except (AttributeError, ImportError) as error:
        raise HostError(
            f"{KEY}: this version of vLLM keeps what it has loaded in a reload that failed, where "
            f"it cannot be discarded ({error}); restart the server"
        ) from error
    if hasattr(model, "_original_do_torchao_reload"):
        model._do_torchao_reload = model._original_do_torchao_reload
