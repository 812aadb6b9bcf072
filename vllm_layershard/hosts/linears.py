"""The linears of a vLLM model: found while it is built, described as the plan knows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from vllm.model_executor.layers.linear import LinearBase, ReplicatedLinear
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from vllm_layershard.config import KEY, LayerShardConfig
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.names import (
    DCP_LINEAR,
    GET_LANGUAGE_MODEL,
    QREP_ACTIVE,
    SUPPORTS_MULTIMODAL,
    USES_META_DEVICE,
)
from vllm_layershard.plan import Linear, in_stride, layers_of, require_layers
from vllm_layershard.runtime.ranks.messages import exchange
from vllm_layershard.runtime.tensors import describe, materialise, release, tie

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@contextmanager
def collecting(
    config: LayerShardConfig, num_layers: int
) -> Iterator[dict[int, tuple[Linear, nn.Module]]]:
    """Note every linear of a numbered layer that is built meanwhile; release those to be sharded.

    Yields what is found, by `id` of the module, in order of construction.
    """
    found: dict[int, tuple[Linear, nn.Module]] = {}

    def on_registration(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        # Aliases are registered again: the MLA wrapper takes in its parent's linears.
        if not isinstance(child, LinearBase) or id(child) in found:
            return
        layer_id = layer_of(child.prefix)
        if layer_id is None or layer_id >= num_layers:
            return
        linear = describe_linear(child, layer_id)
        found[id(child)] = (linear, child)
        named = any(linear.is_named(name) for name in config.layers)
        if named and in_stride(layer_id, config.layer_stride):
            release(child)

    handle = register_module_module_registration_hook(on_registration)
    try:
        yield found
    finally:
        handle.remove()


def leave_towers(
    model: Any, found: dict[int, tuple[Linear, nn.Module]], device: torch.device
) -> None:
    """Take the linears outside the language model out of `found`, and undo their release.

    Encoders of images and sounds have numbered layers, too, but run only when a request brings
    one: never in lockstep.

    Raises:
        HostError: this version of vLLM does not tell which part is the language model.
    """
    hidden_part = language_model_of(model)
    if hidden_part is model:
        return
    hidden = {id(module) for module in hidden_part.modules()}
    for key in [key for key in found if key not in hidden]:
        _, module = found.pop(key)
        materialise(module, device)


def language_model_of(model: Any) -> Any:
    """The part that is the language model, by vLLM's own knowledge; else the model itself.

    Raises:
        HostError: it has other parts, and this version of vLLM does not tell them apart.
    """
    if hasattr(model, "get_language_model"):
        return model.get_language_model()
    if SUPPORTS_MULTIMODAL.imported()(model):
        raise GET_LANGUAGE_MODEL.gone()
    return model


def layer_of(prefix: str) -> int | None:
    """The absolute layer index in a linear's name; None outside the layers."""
    return next((int(part) for part in prefix.split(".") if part.isdigit()), None)


def describe_linear(module: Any, layer_id: int) -> Linear:
    """A vLLM linear as the plan knows it, with the tensors that it holds now."""
    # A ReplicatedLinear carries the world's tp_size, though it is whole on every rank (vLLM 0.32).
    whole = module.tp_size == 1 or isinstance(module, ReplicatedLinear)
    copies = 1 if whole else _tp_copies(module)
    return Linear(module.prefix, layer_id, whole, describe(module), copies)


def _tp_copies(module: Any) -> int:
    """How many neighbouring tensor-parallel ranks hold the same part of a split linear.

    Under `dcp_q_replicate` those of a decode-context group do: each computes the queries of all.
    Source: vLLM 0.32, linear.py, `DCPGroupColumnParallelLinear`.
    """
    if isinstance(module, DCP_LINEAR.imported()):
        return int(module.group_size) if QREP_ACTIVE.of(module) else 1
    return int(module.group_size) if getattr(module, "qrep_active", False) else 1


def method_name(module: Any) -> str:
    """What quantises a linear: its quant method, with the scheme that some methods dispatch to."""
    scheme = getattr(module, "scheme", None)
    parts = (module.quant_method,) if scheme is None else (module.quant_method, scheme)
    return ", ".join(type(part).__name__ for part in parts)


def is_quantised_while_loaded(module: Any) -> bool:
    """Whether its quant method makes the weight from what is loaded, on every rank by itself.

    Raises:
        HostError: this version of vLLM does not tell.
    """
    USES_META_DEVICE.of(QuantizeMethodBase)
    return bool(getattr(module.quant_method, "uses_meta_device", False))


def check_matched(
    config: LayerShardConfig,
    selected: dict[str, tuple[Linear, ...]],
    linears: list[Linear],
    vllm_config: VllmConfig,
) -> None:
    """Refuse names that shard nothing on any pipeline stage. Collective if there are stages.

    Raises:
        PlanError: a name matches no linear, or the stride leaves none of its layers.
    """
    stages = [layers_of(selected)]
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        from vllm.distributed.parallel_state import get_pp_group

        group = get_pp_group()
        mine = {name: sorted(layer_ids) for name, layer_ids in stages[0].items()}
        stages = [
            {name: set(layer_ids) for name, layer_ids in told.items()}
            for told in exchange(mine, group.cpu_group, group.ranks)
        ]
    require_layers(stages, linears, config.layer_stride)


def check_untied(model: nn.Module, modules: Sequence[Any]) -> None:
    """Refuse linears that share a parameter with another module.

    Raises:
        HostError: names the linear that is to be sharded, and the other module.
    """
    for module in modules:
        other = tie(model, module)
        if other is not None:
            raise HostError(
                f"{KEY}: {module.prefix} shares a parameter with {other}, which would not see it "
                "move; leave it out"
            )
