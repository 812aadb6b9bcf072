"""RankGroup: the ranks that hold the same copies, and their private process groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout, _world, get_backend_config

from vllm_layershard.errors import HostError, PlanError, TransportError
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.ranks.messages import exchange
from vllm_layershard.runtime.ranks.nccl import options_for, uses_nccl


class Group(ABC):
    """Ranks that hold the same copies. `ranks` are global, in plan order.

    `group_rank` is this process's place among them; `lockstep` says whether all of them run every
    forward together; `rejoins` whether one that ended may come back while the others go on. `name`
    is the same on all ranks, and on a rank that restarts.
    """

    ranks: tuple[int, ...]
    group_rank: int
    lockstep: ClassVar[bool]
    rejoins: bool
    name: str

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.ranks)

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by group rank; all ranks call it with the same subjects in order.

        A value is plain data of JSON's types, and comes back as JSON has it.

        Raises:
            MismatchError: what a rank sent is no such data.
            TransportError: a rank did not, in bounded time.
        """

    def lost(self, what: str, error: RuntimeError) -> TransportError:
        """What to raise where something failed because of another rank."""
        return _lost(self.ranks[self.group_rank], what, self.ranks, error)

    def lost_layer(self, plan: SeriesPlan, position: int, error: RuntimeError) -> TransportError:
        """What to raise where a layer could not be moved."""
        owner = self.ranks[plan.loader[position]]
        whose = "stored in stripes" if plan.is_striped else f"owned by rank {owner}"
        return self.lost(f"{plan.layer_name(position)}, {whose}, could not be moved", error)


@dataclass(frozen=True)
class RankGroup(Group):
    """Ranks of one world, in lockstep.

    `data` moves weights on the device's backend, `control` exchanges messages on the CPU. Tokens,
    which the compute waits for at once, have a group `apart` where that of the weights is bounded.
    """

    lockstep: ClassVar[bool] = True
    rejoins: ClassVar[bool] = False  # type: ignore[misc]

    ranks: tuple[int, ...]
    group_rank: int
    data: dist.ProcessGroup
    control: dist.ProcessGroup
    apart: dist.ProcessGroup | None = None

    @property
    def tokens(self) -> dist.ProcessGroup:
        """What moves tokens."""
        return self.data if self.apart is None else self.apart

    @property
    def name(self) -> str:  # type: ignore[override]
        """Its ranks."""
        return "-".join(map(str, self.ranks))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by group rank. Collective; blocks until all have called it.

        Raises:
            MismatchError: what a rank sent is no plain data.
            TransportError: a rank did not, within the process group's timeout.
        """
        try:
            return exchange(value, self.control, self.ranks)
        except RuntimeError as error:
            raise self.lost("the ranks could not compare what they hold", error) from error

    def broadcast(self, tensor: torch.Tensor, owner: int) -> None:
        """Fill `tensor` on every rank with the bytes of group rank `owner`'s. Collective."""
        dist.broadcast(tensor, src=self.ranks[owner], group=self.data)

    def end_data(self) -> None:
        """Give back what `data` takes of the device: nothing moves on it any more. All ranks do so.

        A communicator of NCCL or HCCL keeps its buffers for as long as it lives.
        """
        dist.destroy_process_group(self.data)

    def bound_movements(self, most_s: float) -> None:
        """Wait for weights no longer than this, if it is less than the process group's timeout."""
        bound = min(_timeout_of(self.data), timedelta(seconds=most_s))
        _set_pg_timeout(bound, self.data)


def _lost(rank: int, what: str, ranks: tuple[int, ...], error: RuntimeError) -> TransportError:
    said = str(error).strip().split("\n")[0]
    return TransportError(
        f"rank {rank}: {what}: a rank of the group {list(ranks)} died or hangs; see that rank's "
        f"log, then restart the server ({said})"
    )


def create_groups(
    groups: Sequence[tuple[int, ...]],
    backend: str,
    *,
    data_timeout: timedelta | None = None,
    control_timeout: timedelta | None = None,
    beside_others: bool = False,
    tokens_too: bool = False,
) -> dict[int, RankGroup]:
    """Create private process groups; collective over the whole world, same order everywhere.

    Returns this rank's groups, keyed by their index in `groups`. A timeout is how long a rank waits
    for the others in one collective; None is torch.distributed's own. What moves `beside_others`,
    on a side stream, leaves the model's own collectives room on the device: see nccl.py. With
    `tokens_too` the groups move tokens as well, of which no more than the model's own is asked.

    Raises:
        TransportError: a rank did not take part, within torch.distributed's timeout.
        HostError: NCCL cannot be told to leave room, or torch would split its communicator.
    """
    rank = dist.get_rank()
    mine: dict[int, RankGroup] = {}
    for index, ranks in enumerate(groups):
        options = options_for(backend, data_timeout) if beside_others else None
        _require_whole_world(ranks)
        try:
            data = _new_group(ranks, data_timeout, backend, pg_options=options)
            control = _new_group(ranks, control_timeout, "gloo")
            bounded = tokens_too and options is not None
            apart = _new_group(ranks, data_timeout, backend) if bounded else None
        except RuntimeError as error:
            raise _lost(rank, "no private groups could be formed", ranks, error) from error
        if rank in ranks:
            mine[index] = RankGroup(ranks, ranks.index(rank), data, control, apart)
    return mine


def _new_group(
    ranks: tuple[int, ...], timeout: timedelta | None, backend: str, **options: Any
) -> dist.ProcessGroup:
    """A process group whose ranks are in the order of `ranks`, as its group ranks are ours.

    torch sorts them unless it is told not to, and older versions have no word for that.
    """
    if list(ranks) != sorted(ranks):
        options["sort_ranks"] = False
    return dist.new_group(list(ranks), timeout, backend, **options)


def _require_whole_world(ranks: tuple[int, ...]) -> None:
    """Refuse a part of a world whose communicator torch would split for it.

    Where the default group is bound to a device, torch makes each new group over NCCL out of the
    default one's communicator. All ranks of the world must take part in that. Ranks outside the new
    group do so for groups of any backend, its members only for NCCL. Source: torch 2.13,
    distributed_c10d.py, `_new_process_group_helper`.

    Raises:
        HostError: says why, and the remedy.
    """
    world = dist.group.WORLD
    device = getattr(world, "bound_device_id", None)
    if world is None or device is None or len(ranks) == dist.get_world_size():
        return
    if world._get_backend(device).supports_splitting:
        raise HostError(
            f"the ranks {list(ranks)} are a part of the world, and its default process group is "
            f"bound to {device}: torch would split its communicator, for which they would wait "
            "for ever; leave device_id out of init_process_group (vLLM: unset "
            "VLLM_DISTRIBUTED_USE_SPLIT_GROUP), or share over the whole world"
        )


def group_over(process_group: dist.ProcessGroup | None) -> RankGroup:
    """A RankGroup over an existing process group (None: the world), for the manual API.

    Raises:
        PlanError: torch.distributed has none, or this rank is not in it.
    """
    pg = process_group or dist.group.WORLD
    if pg is None:
        raise PlanError(
            "torch.distributed has no process group; call init_process_group before layers are "
            "sharded"
        )
    if not isinstance(pg, dist.ProcessGroup):
        raise PlanError(
            f"rank {dist.get_rank()} is not in the process group that it was given; shard layers "
            "only on the group's own ranks"
        )
    ranks = tuple(dist.get_process_group_ranks(pg))
    return RankGroup(ranks, ranks.index(dist.get_rank()), pg, pg)


def private_group(group: RankGroup) -> RankGroup:
    """The same ranks over new process groups of the same backend and timeout. Collective over them.

    Collectives of one process group are matched in the order in which they are called, and those on
    a side stream come in an order of their own.

    Raises:
        TransportError: a rank did not take part, within the given group's timeout.
        HostError: NCCL cannot be told to leave the group's other collectives room, or torch would
            split the world's communicator.
    """
    given = group.data
    if uses_nccl(get_backend_config(given)):  # groups over gloo need none of the others
        _require_whole_world(group.ranks)
    _count_alike(group)
    timeout = _timeout_of(given)  # a new group would have the default
    backend = get_backend_config(given)
    options = options_for(backend, timeout)
    try:
        data, control = (
            _new_group(group.ranks, timeout, kind, pg_options=told, use_local_synchronization=True)
            for kind, told in ((backend, options), ("gloo", None))
        )
    except RuntimeError as error:
        raise group.lost("no private groups could be formed", error) from error
    return RankGroup(group.ranks, group.group_rank, data, control)


def _timeout_of(group: dist.ProcessGroup) -> timedelta:
    """torch tells it in no public way."""
    timeout: timedelta = group._get_backend(group._device_types[0]).options._timeout
    return timeout


def _count_alike(group: RankGroup) -> None:
    """Give every rank as many process groups as the one that has the most. Collective.

    torch names a new group after its ranks and the number of groups that this process is in, and
    ranks find each other by that name. A group of one rank counts, and needs no other.
    """
    count = len(_world.pg_names)
    for _ in range(max(group.gather(count)) - count):
        dist.new_group([dist.get_rank()], backend="gloo", use_local_synchronization=True)
