"""What vLLM's CPU backend lacks for data parallelism of mixture-of-experts models.

Independent of layer sharding: it acts with or without the key, so that an unsharded server exists
to compare with; only on the CPU, and only where vLLM lacks it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from vllm_layershard.hosts.patch import Patch, install_or_warn, is_replaced


def all_gatherv(
    self: Any,
    input_: torch.Tensor | list[torch.Tensor],
    dim: int = 0,
    sizes: list[int] | None = None,
) -> torch.Tensor | list[torch.Tensor]:
    """Concatenate every rank's rows, `sizes[r]` of rank r (None: as many everywhere). Collective.

    [sizes[rank], ...] -> [sum(sizes), ...], for one tensor or for each of a list; `dim` is 0.
    """
    assert dim == 0, "vLLM gathers rows"
    if isinstance(input_, list):
        return [all_gatherv(self, tensor, dim, sizes) for tensor in input_]  # type: ignore[misc]
    rows = sizes if sizes is not None else [input_.shape[0]] * self.world_size
    most = max(rows)
    padded = input_.new_zeros(most, *input_.shape[1:])
    padded[: input_.shape[0]] = input_
    gathered = input_.new_empty(self.world_size, most, *input_.shape[1:])
    dist.all_gather_into_tensor(gathered.flatten(0, 1), padded, group=self.device_group)
    return torch.cat([gathered[rank, :count] for rank, count in enumerate(rows)])


def reduce_scatterv(
    self: Any, input_: torch.Tensor, dim: int = -1, sizes: list[int] | None = None
) -> torch.Tensor:
    """Sum the ranks' inputs and keep this rank's rows. Collective.

    [sum(sizes), ...] -> [sizes[rank], ...]; `dim` is 0. With two ranks the sum does not depend on
    the order, so that a row's value does not depend on where in the batch it lies.
    """
    assert dim == 0, "vLLM scatters rows"
    rows = sizes if sizes is not None else [input_.shape[0] // self.world_size] * self.world_size
    total = input_.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=self.device_group)
    start = sum(rows[: self.rank_in_group])
    return total[start : start + rows[self.rank_in_group]]


def _opaque_where_ranks_exchange(original: Callable[..., Any]) -> Callable[..., Any]:
    def _select_forward(self: Any) -> Any:
        from vllm.distributed import get_dp_group

        if get_dp_group().world_size == 1:
            return original(self)
        ops = torch.ops.vllm
        return ops.moe_forward if self._shared_experts is None else ops.moe_forward_shared

    return _select_forward


_COMMUNICATOR = "vllm.distributed.device_communicators.cpu_communicator"
_VERSIONS = "0.29 to 0.33"

PATCHES = (
    Patch(
        module=_COMMUNICATOR,
        owner="CpuCommunicator",
        attribute="all_gatherv",
        versions=_VERSIONS,
        reason="the CPU communicator inherits NotImplementedError; MoE data parallelism calls it",
        removal="CpuCommunicator has an all_gatherv of its own",
        wrap=lambda original: all_gatherv,
    ),
    Patch(
        module=_COMMUNICATOR,
        owner="CpuCommunicator",
        attribute="reduce_scatterv",
        versions=_VERSIONS,
        reason="the CPU communicator inherits NotImplementedError; MoE data parallelism calls it",
        removal="CpuCommunicator has a reduce_scatterv of its own",
        wrap=lambda original: reduce_scatterv,
    ),
    Patch(
        module="vllm.model_executor.layers.fused_moe.runner.moe_runner",
        owner="MoERunner",
        attribute="_select_forward",
        versions=_VERSIONS,
        reason="on the CPU the MoE op is inlined, and Dynamo cannot trace the data-dependent "
        "sizes that data-parallel ranks exchange; the opaque op is chosen where dp > 1",
        removal="vLLM chooses the opaque op on the CPU when the data-parallel world exceeds one",
        wrap=_opaque_where_ranks_exchange,
    ),
)


def install(module: str) -> None:
    """Add what this vLLM module lacks, in this process. Re-entrant; never raises.

    Where vLLM has moved a symbol a warning names it: what needs it will fail in vLLM's own words.
    """
    for patch in PATCHES:
        if patch.module == module and not _has_its_own(patch):
            install_or_warn(patch, "data parallelism of mixture-of-experts models on a CPU")


def require() -> None:
    """Refuse a vLLM in which a symbol is gone that data parallelism on a CPU needs.

    Raises:
        HostError: names it.
    """
    for patch in PATCHES:
        patch.original()


def _has_its_own(patch: Patch) -> bool:
    """Whether this vLLM has what the CPU communicator lacks in those that the patch is for."""
    communicator = getattr(sys.modules.get(_COMMUNICATOR), "CpuCommunicator", None)
    added = vars(communicator).get(patch.attribute) if communicator is not None else None
    return patch.module == _COMMUNICATOR and added is not None and not is_replaced(added)
