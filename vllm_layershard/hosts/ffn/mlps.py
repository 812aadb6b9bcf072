"""The dense MLPs of a model with routed experts: found by what its modules are, not by names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.quantization.fp8 import Fp8LinearMethod

from vllm_layershard.errors import HostError
from vllm_layershard.ffn_config import FFN_KEY
from vllm_layershard.hosts.linears import (
    is_quantised_while_loaded,
    language_model_of,
    method_name,
)
from vllm_layershard.hosts.names import MOE_RUNNER

_ROUTED = "vllm.model_executor.layers.fused_moe"
"""The package of vLLM's routed experts, whatever a release calls the class."""

_ACTIVATIONS = (SiluAndMul, GeluAndMul)
"""They pair column i of the gate with column i of the other half."""


class DenseMlp(NamedTuple):
    """A gated MLP of one decoder layer, at its path in the model."""

    path: str
    module: Any
    gate_up: Any
    down: Any


def dense_mlps(model: Any, num_layers: int) -> tuple[DenseMlp, ...]:
    """Those of the decoder layers that have no routed experts, in order.

    A layer with routed experts is left as it is, shared experts and all. So are the encoders of
    images and sounds, and layers behind the last hidden one.

    Raises:
        HostError: this version of vLLM calls routed experts, or the language model, otherwise.
    """
    MOE_RUNNER.imported()  # the package bears this name
    within = {id(module) for module in language_model_of(model).modules()}
    found = []
    for name, layers in model.named_modules():
        if not isinstance(layers, nn.ModuleList) or id(layers) not in within:
            continue
        if any(part.isdigit() for part in name.split(".")):
            continue  # a list within a layer
        for index, layer in layers.named_children():
            if int(index) < num_layers and not any(map(_is_routed, layer.modules())):
                found += list(_gated(layer, f"{name}.{index}"))
    return tuple(found)


def _is_routed(module: nn.Module) -> bool:
    return any(kind.__module__.startswith(_ROUTED) for kind in type(module).__mro__)


def _gated(layer: nn.Module, path: str) -> Iterator[DenseMlp]:
    """Modules of a layer whose parameters are those of a column-split and a row-split linear."""
    for name, module in layer.named_modules(prefix=path):
        children = list(module.children())
        merged = [x for x in children if isinstance(x, MergedColumnParallelLinear)]
        rows = [x for x in children if isinstance(x, RowParallelLinear)]
        if len(merged) == len(rows) == 1 and len(merged[0].output_sizes) == 2:
            mlp = DenseMlp(name, module, merged[0], rows[0])
            if not _more_parameters(mlp):
                yield mlp


def _more_parameters(mlp: DenseMlp) -> bool:
    own = {id(p) for linear in (mlp.gate_up, mlp.down) for p in linear.parameters()}
    return any(id(parameter) not in own for parameter in mlp.module.parameters())


def check_mlp(mlp: DenseMlp) -> None:
    """Refuse an MLP whose parts would not add up to it.

    Raises:
        HostError: names the linear or the module, and what is not served.
    """
    activations = [x for x in mlp.module.children() if x is not mlp.gate_up and x is not mlp.down]
    if not (len(activations) == 1 and isinstance(activations[0], _ACTIVATIONS)):
        kinds = ", ".join(type(x).__name__ for x in activations) or "none"
        raise _refused(mlp.path, f"its activation ({kinds}) is not known to work on columns alone")
    for linear, kind in ((mlp.gate_up, MergedColumnParallelLinear), (mlp.down, RowParallelLinear)):
        _check_linear(linear, kind)
    if not (mlp.down.reduce_results and mlp.down.input_is_parallel):
        raise _refused(mlp.down.prefix, "its sums are made elsewhere (reduce_results)")
    if mlp.gate_up.gather_output:
        raise _refused(mlp.gate_up.prefix, "it gathers its output")


def _check_linear(linear: Any, kind: type[nn.Module]) -> None:
    method, built = linear.quant_method, type(linear)
    if built is not kind:
        raise _refused(linear.prefix, f"it is a {built.__name__}, not vLLM's {kind.__name__}")
    if linear.disable_tp:
        raise _refused(linear.prefix, "it is whole on every tensor-parallel rank")
    if linear.bias is not None:
        raise _refused(linear.prefix, "it has a bias")
    if is_quantised_while_loaded(linear):
        raise _refused(linear.prefix, f"it is quantised while it is loaded ({method_name(linear)})")
    by_blocks = type(method) is Fp8LinearMethod and method.block_quant
    if not by_blocks and type(method) is not UnquantizedLinearMethod:
        raise _refused(
            linear.prefix,
            f"its quant method ({method_name(linear)}) is not split here; unquantised linears and "
            "fp8 in blocks are",
        )


def _refused(what: str, why: str) -> HostError:
    return HostError(f"{FFN_KEY}: {what}: {why}; leave the key out for this model")


def block_of(linear: Any) -> tuple[int, int]:
    """Rows and columns that share a scale; (1, 1) without scales."""
    size = getattr(linear, "weight_block_size", None)
    return (1, 1) if size is None else (int(size[0]), int(size[1]))
