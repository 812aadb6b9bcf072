"""One vLLM model whose dense MLPs are split over data-parallel ranks.

The model is constructed as ever. Then each dense MLP's two linears are made into parts, and its
forward into one op; vLLM loads and processes the parts as those of a tensor-parallel rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import vllm
from torch import nn
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.logger import init_logger

from vllm_layershard.errors import PlanError
from vllm_layershard.ffn_config import FFN_KEY, FfnConfig
from vllm_layershard.hosts.agreed_counts import agreed_counts
from vllm_layershard.hosts.ffn.mlps import DenseMlp, block_of, check_mlp, dense_mlps
from vllm_layershard.hosts.ffn.part import make_part
from vllm_layershard.hosts.ffn.settings import split_of
from vllm_layershard.hosts.groups import timeout
from vllm_layershard.hosts.identity import checkpoint_of, read_as
from vllm_layershard.hosts.names import CPU_GROUPS_TIMEOUT, GROUPS_TIMEOUT
from vllm_layershard.hosts.reload.process_checkpoints import refuse_checkpoints
from vllm_layershard.plan.ffn import FfnSplit
from vllm_layershard.runtime.device import device_of
from vllm_layershard.runtime.moves.ops import order_on
from vllm_layershard.runtime.ranks.checkpoint import fault_in
from vllm_layershard.runtime.ranks.group import RankGroup, create_groups
from vllm_layershard.runtime.ranks.handshake import handshake, shared_store
from vllm_layershard.runtime.ranks.messages import exchange
from vllm_layershard.runtime.split_mlp import SplitFfn, SplitMlp, bind_mlps, ffn
from vllm_layershard.runtime.tensors import held
from vllm_layershard.version import __version__

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(f"vllm.{__name__}")


def build_split(
    config: FfnConfig, vllm_config: VllmConfig, construct: Callable[[], nn.Module]
) -> nn.Module:
    """Compare what the ranks were started with, then construct and split. Collective.

    For a model of which nothing else is shared; what else compares ranks calls `split_model`.

    Raises:
        MismatchError: the ranks were not started alike, or were given different checkpoints, or one
            of them is missing.
        Others: as `split_model`.
    """
    ranks = handshake(shared_store(), FFN_KEY)
    started = {
        "vllm-layershard": __version__,
        "vllm": vllm.__version__,
        **ffn_started_with(config),
        "layout": asdict(split_of(vllm_config, config).layout),
        "model": read_as(vllm_config),
    }
    ranks.compare("configuration", {ranks.world: started})
    ranks.compare_by("checkpoint", checkpoint_of(vllm_config)._asdict(), fault_in)
    try:
        model, _ = split_model(config, vllm_config, construct)
    except Exception as error:
        ranks.leave(error)
        raise
    refuse_checkpoints(model)
    return model


def ffn_started_with(config: FfnConfig | None) -> dict[str, Any]:
    """What of it must be the same on every rank."""
    return {} if config is None else {FFN_KEY: asdict(config)}


def split_model(
    config: FfnConfig, vllm_config: VllmConfig, construct: Callable[[], nn.Module]
) -> tuple[nn.Module, SplitFfn]:
    """Construct the model and split its dense MLPs. Collective over the world.

    Raises:
        PlanError: the model has none, or they give no even parts.
        HostError: a linear of theirs cannot be split on this host.
    """
    split = split_of(vllm_config, config)
    group = _group_of(split, vllm_config)
    model = construct()
    mlps = dense_mlps(model, vllm_config.model_config.hf_text_config.num_hidden_layers)
    _require_some(mlps, model, vllm_config)
    for mlp in mlps:
        check_mlp(mlp)
        block = max(*block_of(mlp.gate_up), *block_of(mlp.down))
        split.require_even(mlp.path, mlp.down.input_size, block)
    part = split.part_of(dist.get_rank() % split.layout.world_size)
    bound = [_split(mlp, part, split, group) for mlp in mlps]
    bind_mlps(bound)
    linears = [linear for mlp in mlps for linear in (mlp.gate_up, mlp.down)]
    ffn = SplitFfn(group, bound, lambda: sum(map(_bytes, linears)))
    _announce(ffn, group)
    return model, ffn


def _group_of(split: FfnSplit, vllm_config: VllmConfig) -> RankGroup:
    """This rank's group. Collective over the world, where vLLM may run several deployments."""
    world, layout = dist.get_world_size(), split.layout
    assert world % layout.world_size == 0, f"{world} ranks for {layout}"
    wanted = [
        tuple(first + rank for rank in ranks)
        for first in range(0, world, layout.world_size)  # vLLM's ExternalDP dimension
        for ranks in split.groups()
    ]
    device = device_of(torch.device(vllm_config.device_config.device_type))
    parallel_config = vllm_config.parallel_config
    (mine,) = create_groups(
        wanted,
        device.backend,
        data_timeout=timeout(parallel_config, GROUPS_TIMEOUT),
        control_timeout=timeout(parallel_config, CPU_GROUPS_TIMEOUT),
    ).values()
    return mine


def _require_some(mlps: Sequence[DenseMlp], model: nn.Module, vllm_config: VllmConfig) -> None:
    """Refuse a model without dense MLPs. Collective if there are pipeline stages."""
    counts = [len(mlps)]
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        from vllm.distributed.parallel_state import get_pp_group

        stages = get_pp_group()
        counts = exchange(len(mlps), stages.cpu_group, stages.ranks)
    if not any(counts):
        raise PlanError(
            f"{FFN_KEY}: {type(model).__name__} has no decoder layer without routed experts, so "
            "there is no dense MLP to split; leave the key out for this model"
        )


def _split(mlp: DenseMlp, part: int, split: FfnSplit, group: RankGroup) -> SplitMlp:
    """Make the MLP's linears into parts, and its forward into the op."""
    for linear in (mlp.gate_up, mlp.down):
        make_part(linear, part, split.parts)
    module, name = mlp.module, mlp.path
    first = split.first_of(dist.get_rank() % split.layout.world_size)
    finish = tensor_model_parallel_all_reduce if split.layout.tp > 1 else None
    compute = type(module).forward.__get__(module)
    bound = SplitMlp(
        name,
        group,
        compute,
        lambda: agreed_counts(FFN_KEY, name)[first : first + split.size],
        finish,
    )

    order = order_on(next(mlp.down.parameters()).device)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return ffn(x, order, name)

    module.forward = forward
    return bound


def _bytes(linear: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in held(linear).values())


def _announce(ffn: SplitFfn, group: RankGroup) -> None:
    document = ffn.document()
    logger.info(
        "Dense MLPs: %d over %d ranks: this rank holds part %d, %d bytes instead of %d",
        len(document["mlps"]),
        group.size,
        group.group_rank,
        document["held_bytes"],
        document["held_bytes"] + document["saved_bytes"],
    )
