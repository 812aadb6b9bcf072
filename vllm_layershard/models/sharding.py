"""Sharding: one model on one deployment, with the plan of every group of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from vllm_layershard.config import LayerShardConfig, TransportName
from vllm_layershard.errors import PlanError
from vllm_layershard.models.attention_linears import copied_prefixes, shared_expert_prefixes
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.model import Model
from vllm_layershard.models.weight_bytes import WeightBytes
from vllm_layershard.plan import (
    GroupPlan,
    Linear,
    Plan,
    SharedNeed,
    group_plans,
    layers_of,
    require_layers,
    select,
    shared_need,
    sharing_layout,
    stage_layers,
)

if TYPE_CHECKING:
    from vllm_layershard.models.ffn.record import SplitMlps


class Sharding(NamedTuple):
    """Everything that is decided before launch.

    `model` has no MLAPO where linears are named that it would copy.
    `weight_bytes` and `saved_bytes` are indexed by global rank; `groups` and `split_mlps` are in
    the order of the pipeline stages. What is saved counts what split MLPs save, too; without a
    split `split_mlps` is empty.
    """

    model: Model
    deployment: Deployment
    config: LayerShardConfig
    groups: tuple[GroupPlan, ...]
    weight_bytes: tuple[WeightBytes, ...]
    saved_bytes: tuple[int, ...]
    split_mlps: tuple[SplitMlps, ...] = ()

    @property
    def said(self) -> str:
        """The model, the number of ranks and the linears, in a line."""
        ranks, names = self.deployment.layout.world_size, ", ".join(self.config.layers)
        return f"{self.model.name} on {ranks} ranks: {names}"

    @property
    def transport_names(self) -> tuple[TransportName, ...]:
        """How weights move, each way once; () where the placement moves none.

        Groups of several sizes may differ. One in which every layer stays counts where no other is.
        """
        if self.config.placement == "replicated":
            return ()
        groups = [group for group in self.groups if group.moves] or self.groups
        return tuple(sorted({group.transport_name for group in groups}))

    @property
    def moves(self) -> bool:
        """Whether any weight moves: those of the `replicated` placement do not."""
        return any(group.moves for group in self.groups)

    @property
    def shared_needs(self) -> tuple[SharedNeed, ...]:
        """What each global rank takes of its node's shared memory on a CPU; () without pulls.

        Pairs of GPUs that pull would broadcast on a CPU.
        """
        if not self.deployment.layout.one_sided or not self.transport_names:
            return ()
        plans: list[list[tuple[Plan, int]]] = [[] for _ in range(self.deployment.layout.world_size)]
        for group in self.groups:
            for ranks in group.ranks:
                for group_rank, rank in enumerate(ranks):
                    plans[rank].append((group.plan, group_rank))
        return tuple(map(shared_need, plans))

    @property
    def loses(self) -> bool:
        """Whether it moves weights and yet leaves some rank with no more memory than before."""
        return self.config.placement != "replicated" and min(self.saved_bytes) <= 0

    def kv_bytes_per_token(self, kv_cache_dtype: str, rank: int) -> int:
        """Cache bytes of one token on a global rank: of its stage's layers."""
        layers = self._stages[self.deployment.layout.stage_of(rank)]
        return self.model.kv_bytes_per_token(kv_cache_dtype, layers, self.deployment)

    def stage_kv_bytes(self, kv_cache_dtype: str) -> tuple[int, ...]:
        """Cache bytes of one token on a rank of each pipeline stage: of the stage's layers."""
        return tuple(
            self.model.kv_bytes_per_token(kv_cache_dtype, layers, self.deployment)
            for layers in self._stages
        )

    def stage_state_bytes(self) -> tuple[int, ...]:
        """Bytes that a rank of each pipeline stage keeps of each sequence, however long it is."""
        return tuple(
            self.model.state_bytes_per_sequence(layers, self.deployment) for layers in self._stages
        )

    @property
    def _stages(self) -> Sequence[Sequence[int]]:
        return stage_layers(self.model.num_layers, self.deployment.layout.pp)


def require_experts(model: Model, deployment: Deployment) -> None:
    """Refuse expert parallelism of a dense model, as vLLM does.

    Source: vLLM 0.32, config/model.py, `_verify_with_expert_parallelism`.

    Raises:
        PlanError: it has no experts.
    """
    if deployment.ep and not model.is_moe:
        raise PlanError(f"--ep: {model.name} is a dense model without experts; leave it out")


def shard_model(model: Model, deployment: Deployment, config: LayerShardConfig) -> Sharding:
    """Plan the sharding of a model.

    Raises:
        PlanError: a name that matches nothing; a prefetch_step that is too large; a layout that
            cannot split the model, that gives a rank nobody to share with, or that distributes
            experts where there are none. Broadcasts among replicas. A token exchange, or a
            movement of tokens, that cannot be.
    """
    require_experts(model, deployment)
    sizes = deployment.layout
    layout = sharing_layout(
        tp=sizes.tp,
        dp=sizes.dp,
        pcp=sizes.pcp,
        pp=sizes.pp,
        is_moe=model.is_moe,
        config=config,
        gpus_reach=deployment.gpus_reach,
    )
    layout.require_peers()
    deployment = replace(deployment, layout=layout)
    if config.move != "weights":
        _require_movable(model, deployment, config)
    if config.token_exchange:
        from vllm_layershard.models.exchange import require_exchange  # seldom asked for

        require_exchange(model, deployment, config.token_exchange)
        deployment = replace(deployment, exchange=config.token_exchange)
    linears = model.linears(deployment)
    split: tuple[SplitMlps, ...] = ()
    if deployment.ffn > 1:
        from vllm_layershard.models.ffn.split import others_than, split_mlps  # seldom asked for

        split = split_mlps(model, deployment)
        linears = others_than(split, linears, config)
    selected = select(linears, config.layers)
    if config.move != "weights":
        _require_seen(model, deployment, config, selected)
    copied = copied_prefixes(model, deployment)
    if any(linear.prefix in copied for members in selected.values() for linear in members):
        model = model._replace(mlapo=False)  # the server refuses them with it
    require_layers([layers_of(selected)], linears, config.layer_stride)
    groups: list[GroupPlan] = []
    for stage, layers in enumerate(stage_layers(model.num_layers, layout.pp)):
        here = {
            name: [linear for linear in members if linear.layer_id in layers]
            for name, members in selected.items()
        }
        try:
            groups.extend(group_plans(here, config, layout, stage))
        except PlanError as error:
            if layout.pp == 1:
                raise
            raise PlanError(f"pipeline stage {stage} of {layout.pp}: {error}") from None
    saved = [0] * layout.world_size
    if split:
        saved = [split[layout.stage_of(rank)].saved_bytes for rank in range(layout.world_size)]
    for group in groups:
        for ranks in group.ranks:
            for rank, saved_bytes in zip(ranks, group.plan.saved_bytes, strict=True):
                saved[rank] += saved_bytes
    return Sharding(
        model=model,
        deployment=deployment,
        config=config,
        groups=tuple(groups),
        weight_bytes=rank_weight_bytes(model, deployment),
        saved_bytes=tuple(saved),
        split_mlps=split,
    )


def _require_movable(model: Model, deployment: Deployment, config: LayerShardConfig) -> None:
    """Refuse a movement of tokens where the plugin does."""
    from vllm_layershard.plan.move import require_agreed_counts, unmovable  # seldom asked for

    layout = deployment.layout
    require_agreed_counts(layout, config)
    splitting = []
    if deployment.sequence_parallel_moe:
        splitting = [
            "sequence parallelism of routed experts (--ep with tensor and data parallelism)"
        ]
    on_npu = model.cache_device.is_ascend
    for why in unmovable(layout, config, splitting, on_npu=on_npu):
        raise PlanError(why)


def _require_seen(
    model: Model,
    deployment: Deployment,
    config: LayerShardConfig,
    selected: Mapping[str, Sequence[Linear]],
) -> None:
    """Refuse to move the tokens of linears that an op hides, as the plugin does."""
    from vllm_layershard.plan.move import hidden_in_experts  # seldom asked for

    hidden = shared_expert_prefixes(model, deployment)
    for linears in selected.values():
        for linear in linears:
            if linear.prefix in hidden:
                raise PlanError(hidden_in_experts(linear.prefix, config))


def rank_weight_bytes(model: Model, deployment: Deployment) -> tuple[WeightBytes, ...]:
    """Bytes of every rank; those of one stage with equally many experts are counted once."""
    layout = deployment.layout
    known: dict[tuple[int, bool], WeightBytes] = {}
    found: list[WeightBytes] = []
    spare = model.experts % deployment.expert_ranks if deployment.ep else 0
    for rank in range(layout.world_size):
        key = (layout.stage_of(rank), deployment.expert_rank(rank) < spare)
        if key not in known:
            known[key] = model.weight_bytes(deployment, rank)
        found.append(known[key])
    return tuple(found)
