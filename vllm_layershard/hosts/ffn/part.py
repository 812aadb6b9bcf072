"""Makes a linear that vLLM has built into one part of it, before its weights are loaded."""

from __future__ import annotations

from typing import Any

from torch import nn
from vllm.model_executor.layers.linear import (
    WEIGHT_LOADER_V2_SUPPORTED,
    MergedColumnParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

from vllm_layershard.hosts.names import REDUCE_RESULTS
from vllm_layershard.plan import Linear


def make_part(linear: Any, part: int, parts: int) -> None:
    """Give the linear the shape and the place of this part, with new parameters on the device.

    It is what its constructor does for a tensor-parallel rank, done again for another rank and
    size: the constructors of these two classes ask vLLM for both, and take none as arguments. The
    weight loaders read them from the linear and its parameters. A row-split linear leaves its
    partial sums to its caller. Source: vLLM 0.32, model_executor/layers/linear.py.
    """
    linear.tp_rank, linear.tp_size = part, parts
    if isinstance(linear, MergedColumnParallelLinear):
        linear.output_size_per_partition = linear.output_size // parts
        linear.output_partition_sizes = [size // parts for size in linear.output_sizes]
    else:
        linear.input_size_per_partition = linear.input_size // parts
        REDUCE_RESULTS.of(linear)
        linear.reduce_results = False
    method = linear.quant_method
    for name, _ in list(linear.named_parameters(recurse=False)):
        delattr(linear, name)
    by_v2 = type(method).__name__ in WEIGHT_LOADER_V2_SUPPORTED
    method.create_weights(
        layer=linear,
        input_size_per_partition=linear.input_size_per_partition,
        output_partition_sizes=linear.output_partition_sizes,
        input_size=linear.input_size,
        output_size=linear.output_size,
        params_dtype=linear.params_dtype,
        weight_loader=linear.weight_loader_v2 if by_v2 else linear.weight_loader,
    )
    linear.update_param_tp_status()
    record_metadata_for_reloading(linear)  # a reload restores what was noted at construction
    if isinstance(method, UnquantizedLinearMethod):
        # vLLM's CPU backend packs the weight into an opaque handle unless this is set (0.32, 0.33):
        # what a rank holds would be in no tensor that the report could count.
        linear._cpu_skip_gemm_dispatch = True
    linear.layershard_part = (part, parts)


def leave_split(found: dict[int, tuple[Linear, nn.Module]]) -> None:
    """Take the linears that are parts out of `found`: no two ranks of a group hold the same."""
    for key in [key for key, (_, module) in found.items() if hasattr(module, "layershard_part")]:
        del found[key]
