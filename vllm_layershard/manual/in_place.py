"""Whether a layer can be served from the memory into which its weight arrives."""

from __future__ import annotations

import torch
from torch import nn

from vllm_layershard.errors import PlanError
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.tensors import held


def check_in_place(layer: nn.Module, series: ShardedSeries, position: int) -> None:
    """Return if the layer's large tensors are those that the series serves at `position`.

    Raises:
        PlanError: names the layer and the tensor that is another one.
    """
    for name, served in series.weights(position).items():
        tensor = getattr(layer, name, None)
        if tensor is None or tensor.data_ptr() != served.data_ptr():
            raise PlanError(
                f"{series.plan.layer_name(position)}: its tensor {name!r} was replaced after "
                "finish, and its weight arrives where the layer no longer reads it; cast, move "
                "and load a model before finish (half, to and load_state_dict(assign=True) "
                "replace tensors)"
            )


def check_no_gradient(layer: nn.Module, series: ShardedSeries, position: int) -> None:
    """Return if no gradient is wanted of the layer's tensors: a slot is rewritten before it.

    Raises:
        PlanError: names the layer; gradients are enabled, and one of its tensors requires one.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in held(layer).values()):
        raise PlanError(
            f"{series.plan.layer_name(position)}: started with gradients enabled, and the "
            "gradients of a sharded layer would be wrong; run it under torch.inference_mode()"
        )
