"""The rows of a linear that one rank stores: computed by the linear's own quant method."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Final

import torch
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.fp8 import Fp8LinearMethod

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.linears import method_name
from vllm_layershard.plan.rows import Rows
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.tensors import point

_BY_ROWS: Final = (
    "TritonFp8BlockScaledMMKernel",
    "CutlassFp8BlockScaledMMKernel",
    "DeepGemmFp8BlockScaledMMKernel",
    "FlashInferFp8DeepGEMMDynamicBlockScaledKernel",
)
"""vLLM's kernels for fp8 in blocks that leave a weight's rows one after another. The others pack
them. DeepGEMM and FlashInfer turn the scales where the device has scales of powers of two: such
scales are refused once they are processed. Source: vLLM 0.32, kernels/linear/scaled_mm."""

_SCALES: Final = "weight_scale_inv"


def check_rows(module: Any, rows: Rows) -> None:
    """Refuse a linear of which its quant method could not compute some rows alone.

    Raises:
        HostError: names the linear, and its quant method.
    """
    method = module.quant_method
    if type(method) is UnquantizedLinearMethod:
        return
    if not (type(method) is Fp8LinearMethod and method.block_quant):
        raise _refused(
            module,
            f"its quant method ({method_name(module)}) computes no rows alone here; linears that "
            "are not quantised can be shared so, and fp8 in blocks",
        )
    kernel = type(method.fp8_linear).__name__
    if kernel not in _BY_ROWS:
        raise _refused(module, f"its kernel ({kernel}) is not known to leave its rows in order")
    block = int(method.weight_block_size[0])
    ends = [*accumulate(map(int, module.output_partition_sizes))][:-1]
    if (rows.number > block and rows.together != block) or any(end % block for end in ends):
        raise _refused(
            module,
            f"its parts of {list(module.output_partition_sizes)} rows do not end at blocks of "
            f"{block}",
        )


def computing_rows(
    module: Any, inner: Any, series: ShardedSeries, position: int
) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """What this rank's rows of the module make, by `inner`, its own quant method.

    [m, D_in] and the whole bias or None -> [m, n]. The method is given a copy of the module that
    has these rows, and no others; both share all else. A rank of no rows makes nothing.
    """
    plan, rank = series.plan, series.group.group_rank
    weight, rows = series.rows(position), plan.series.rows
    first, end = plan.rows(rank)
    assert rows is not None, "the series is cut at rows"
    if weight is None:
        return lambda x, bias: x.new_empty((x.shape[0], 0))
    blocks = slice(*rows.blocks_of(plan.stripes[rank]))
    part = _copy_of(module, end - first)
    point(part, "weight", weight)

    def compute(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if hasattr(module, _SCALES):  # asked each time: a reload may give the module others
            part._parameters[_SCALES] = getattr(module, _SCALES)[blocks]
        made: torch.Tensor = inner.apply(part, x, None if bias is None else bias[first:end])
        return made

    return compute


def _copy_of(module: Any, rows: int) -> Any:
    """A module with tensors of its own choice, of so many output rows; it is in no model."""
    part = copy.copy(module)
    for place in ("_parameters", "_buffers"):
        vars(part)[place] = dict(vars(module)[place])
    sizes = {"output_size_per_partition": rows, "output_partition_sizes": [rows]}
    for name, value in (sizes | {"logical_widths": [rows]}).items():
        if hasattr(module, name):
            setattr(part, name, value)
    return part


def _refused(module: Any, why: str) -> HostError:
    return HostError(
        f"{KEY}: {module.prefix}: it would be placed as stripes of rows (placement 'striped' "
        f"where activations may move), but {why}; leave it out, or use placement 'round_robin'"
    )
