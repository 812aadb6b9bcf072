"""The groups of layer sharding: in vLLM's world, private to it, or over replicas of an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from vllm_layershard.config import Move
from vllm_layershard.errors import MismatchError, NodeError
from vllm_layershard.hosts.deployment import deployment_of, launched_as, meeting_place
from vllm_layershard.hosts.names import CPU_GROUPS_TIMEOUT, GROUPS_TIMEOUT, Name
from vllm_layershard.plan import ParallelLayout, SharedNeed
from vllm_layershard.runtime import shared_memory
from vllm_layershard.runtime.peer_memory.room import Room, require_room
from vllm_layershard.runtime.ranks.agreement import agree_on
from vllm_layershard.runtime.ranks.checkpoint import Checkpoint, fault_in
from vllm_layershard.runtime.ranks.group import Group, RankGroup, create_groups
from vllm_layershard.runtime.ranks.handshake import Ranks, handshake, shared_store
from vllm_layershard.runtime.ranks.rendezvous import Rendezvous
from vllm_layershard.runtime.ranks.replicas import ReplicaGroup
from vllm_layershard.runtime.reload.board import Board, NodeBoard, StoreBoard

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class Groups(ABC):
    """This rank's groups of equal copies, and its word to the other ranks. `rank` is global.

    Engines that share nothing count their ranks each from 0. `first_rank` is what their own rank 0
    is in the whole deployment; where ranks are counted over all engines it is 0.
    """

    rank: int
    first_rank: int = 0

    def __init__(self, layout: ParallelLayout, mine: list[Group]) -> None:
        self._layout = layout
        self._mine = mine
        self._room: Room | None = None

    def of(self, tp_replicated: bool, tp_copies: int) -> Group:
        """The group that holds the same copies of a linear as this rank."""
        size = self._layout.group_size(tp_replicated, tp_copies)
        return next(group for group in self._mine if group.size == size)

    @abstractmethod
    def compare_plans(self, planned: Mapping[Ranks, Any]) -> None:
        """Return if the plans for each group, by its ranks, are the same on all of them.

        Raises:
            MismatchError: who differs, and how.
        """

    def require_room(self, need: SharedNeed) -> None:
        """Return if this node has the memory that its ranks are going to share. All ranks call it.

        Raises:
            NodeError: on every rank, before any has taken some: see the runtime's require_room.
        """
        self._room = Room.found(self.rank, need)
        told = self._gather("room", self._room)
        try:
            require_room([Room.told(document) for document in told])
        except NodeError as error:
            self.leave(error)  # another may not have read yet what this one found
            raise

    def end_collectives(self) -> None:  # noqa: B027 - replicas have no process groups
        """All is loaded, and nothing but pulls moves from now on. All ranks call it."""

    def have_stored(self) -> None:  # noqa: B027 - in one world nobody comes later
        """This rank has taken what it needs: a rank that comes later is to count it no more."""

    @abstractmethod
    def _gather(self, subject: str, value: Any) -> list[Any]:
        """Every rank's value, plain data, by global rank."""

    @abstractmethod
    def board(self) -> Board:
        """Where all ranks with which this one shares anything show how far their reloads are."""

    @abstractmethod
    def leave(self, error: Exception) -> None:
        """Tell the other ranks that this one ends, and why."""


def form_groups(
    layout: ParallelLayout,
    backend: str,
    vllm_config: VllmConfig,
    started: Mapping[str, Any],
    checkpoint: Checkpoint,
    move: Move,
) -> Groups:
    """Compare what the ranks were `started` with, and what they will load; then form their groups.

    Collective in the world. The groups of a world move what `move` says.

    Raises:
        MismatchError: they were not started alike, or given different checkpoints; one of them is
            missing, or runs already.
        HostError: torch or NCCL cannot form them.
    """
    if layout.in_lockstep:
        return _WorldGroups(layout, backend, vllm_config, started, checkpoint, move)
    assert move == "weights", "plan: tokens move among ranks in lockstep only"
    return _ReplicaGroups(layout, backend, vllm_config, started, checkpoint)


class _WorldGroups(Groups):
    """The ranks of one world, in lockstep: over process groups of their own."""

    def __init__(
        self,
        layout: ParallelLayout,
        backend: str,
        vllm_config: VllmConfig,
        started: Mapping[str, Any],
        checkpoint: Checkpoint,
        move: Move,
    ) -> None:
        if layout.one_sided:
            shared_memory.sweep()
        self._store = shared_store()
        self._handshake = handshake(self._store)
        self._handshake.compare("configuration", {self._handshake.world: started})
        self._handshake.compare_by("checkpoint", checkpoint._asdict(), fault_in)
        self.rank = dist.get_rank()
        world_size = dist.get_world_size()
        assert world_size % layout.world_size == 0, f"{world_size} ranks for {layout}"
        wanted = [
            tuple(first + rank for rank in ranks)
            for first in range(0, world_size, layout.world_size)  # vLLM's ExternalDP dimension
            for ranks in _groups_of(layout)
        ]
        parallel_config = vllm_config.parallel_config
        if parallel_config.data_parallel_size == 1:  # or told that it is alone: deployment.py
            self.first_rank = parallel_config.data_parallel_index * world_size
        groups = create_groups(
            wanted,
            backend,
            data_timeout=timeout(parallel_config, GROUPS_TIMEOUT),
            control_timeout=timeout(parallel_config, CPU_GROUPS_TIMEOUT),
            beside_others=move != "activations",
            tokens_too=move != "weights",
        )
        super().__init__(layout, list(groups.values()))

    def end_collectives(self) -> None:
        """What moved the weights while they were loaded gives its memory back."""
        for group in self._mine:
            assert isinstance(group, RankGroup)
            group.end_data()

    def compare_plans(self, planned: Mapping[Ranks, Any]) -> None:
        """Through the world's store: a rank that has none is named, too."""
        self._handshake.compare("plan", planned)

    def _gather(self, subject: str, value: Any) -> list[Any]:
        """Through the world's store."""
        return self._handshake.gather(subject, value)

    def board(self) -> Board:
        """In the world's store, for the ranks of this layout."""
        size = self._layout.world_size
        first = self.rank - self.rank % size
        store = PrefixStore("reload", self._store)
        return StoreBoard(store, self.rank, tuple(range(first, first + size)))

    def leave(self, error: Exception) -> None:
        """Through the world's store."""
        self._handshake.leave(error)


class _ReplicaGroups(Groups):
    """The ranks of all engines of one deployment: each engine is a world of its own."""

    def __init__(
        self,
        layout: ParallelLayout,
        backend: str,
        vllm_config: VllmConfig,
        started: Mapping[str, Any],
        checkpoint: Checkpoint,
    ) -> None:
        global _built
        _built += 1
        world_size = dist.get_world_size()
        assert world_size * layout.dp == layout.world_size, f"{world_size} ranks for {layout}"
        self.rank = vllm_config.parallel_config.data_parallel_index * world_size + dist.get_rank()
        name = f"{deployment_of(vllm_config)}.{_built}"
        self._rendezvous = Rendezvous(name, self.rank, meeting_place(vllm_config))
        self._everyone = ReplicaGroup(self._rendezvous, tuple(range(layout.world_size)), "start")
        try:
            agree_on("configuration", started, self._everyone)
            fault = fault_in(self._everyone.gather(checkpoint._asdict()))
            if fault is not None:
                raise MismatchError(fault)
        except Exception as error:
            self.leave(error)
            raise
        mine = [ranks for ranks in _groups_of(layout) if self.rank in ranks]
        rejoins = launched_as(vllm_config).in_parts  # vLLM ends a server with its first engine
        super().__init__(
            layout, [ReplicaGroup(self._rendezvous, ranks, rejoins=rejoins) for ranks in mine]
        )

    def compare_plans(self, planned: Mapping[Ranks, Any]) -> None:
        """Group by group, through the rendezvous."""
        for group in self._mine:
            agree_on("plan", planned.get(group.ranks), group)

    def have_stored(self) -> None:
        """Those who come later are the ones that are started again."""
        if self._room is not None:
            self._everyone.amend(self._room._replace(stored=True))

    def _gather(self, subject: str, value: Any) -> list[Any]:
        """Through the rendezvous, where values are numbered."""
        return self._everyone.gather(value)

    def board(self) -> Board:
        """In the node's shared memory, for the ranks of all replicas."""
        return NodeBoard(self._rendezvous, tuple(range(self._layout.world_size)))

    def leave(self, error: Exception) -> None:
        """Through the rendezvous."""
        self._rendezvous.leave(error)


_built = 0
"""How many models this process has shared with replicas: as many as every other engine."""


def _groups_of(layout: ParallelLayout) -> Iterator[Ranks]:
    """The ranks of every group, each once: some kinds are one, where nothing is split."""
    every = [ranks for kind in layout.kinds for ranks in layout.groups(*kind)]
    yield from dict.fromkeys(every)


def timeout(parallel_config: Any, setting: Name) -> timedelta | None:
    """How long vLLM's own groups wait; None where that is torch's default."""
    seconds = setting.of(parallel_config)
    return None if seconds is None else timedelta(seconds=seconds)
