"""Weights: what one rank keeps of one series, and where each position's linear reads its weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from vllm_layershard.plan import SeriesPlan, Stripe
from vllm_layershard.runtime.ranks.group import Group
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.tensors import byte_line, cut, held, join, point, storage_bytes
from vllm_layershard.runtime.transport import Transport


class Weights:
    """Filled while loading, position by position; then no address changes any more.

    `resident[p]` are the tensors that this rank owns, by attribute name, for the positions it owns;
    `parts[p]` its stripe of position p, where layers are striped; `slots` holds the others. Without
    a transport nothing moves, and all is resident.
    """

    def __init__(
        self,
        plan: SeriesPlan,
        group: Group,
        transport: Transport | None,
        torch_device: torch.device,
    ) -> None:
        self.resident: dict[int, dict[str, torch.Tensor]] = {}
        self.parts: dict[int, torch.Tensor] = {}
        self.slots = SlotPool(0, (), torch_device)
        self.names: tuple[str, ...] = ()
        self.stripe: Stripe = (0, 0)
        self._plan = plan
        self._group = group
        self._transport = transport
        self._torch_device = torch_device

    def owns(self, position: int) -> bool:
        """Whether this rank keeps the position's weight itself."""
        return self._plan.is_resident(position, self._group.group_rank)

    def take(self, position: int, module: nn.Module, names: tuple[str, ...]) -> None:
        """Take over the module's tensors `names`, in their final form.

        An owner keeps them, in memory that its transport can send from; of a striped layer every
        rank keeps its part. Elsewhere they become aliases of the slot that the plan gives the
        position, and what they were before is freed.

        Raises:
            HostError: the transport has no memory for them.
        """
        tensors = {name: held(module)[name] for name in names}
        if not self.names:
            self._begin(tensors)
        assert names == self.names, f"series {self._plan.series.name!r}: {names} after {self.names}"
        if self._transport is None:
            self.resident[position] = {name: t.detach() for name, t in tensors.items()}
        elif self.owns(position):
            kept = self._transport.store(position, [t.detach() for t in tensors.values()])
            self.resident[position] = dict(zip(names, kept, strict=True))
            for (name, tensor), target in zip(tensors.items(), kept, strict=True):
                if target.data_ptr() != tensor.data_ptr():
                    point(module, name, target)
        else:
            if self._plan.is_striped:
                self._store_part(self._transport, position, tensors.values())
            self._point_to_slot(position, module, tensors)

    def _begin(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """All positions are like the first: slots and stripes are of its size."""
        self.names = tuple(tensors)
        if self._transport is None:
            return
        num_slots = self._plan.schedule.num_slots
        self.slots = SlotPool(num_slots, tuple(tensors.values()), self._torch_device)
        if self._plan.is_striped:  # the plan so far knows the bytes as they were loaded
            nbytes = sum(byte_line(tensor).numel() for tensor in tensors.values())
            self.stripe = self._plan.stripes_of(nbytes)[self._group.group_rank]

    def _store_part(
        self, transport: Transport, position: int, tensors: Iterable[torch.Tensor]
    ) -> None:
        part = join(cut(tensors, *self.stripe))
        if part is not None:
            (self.parts[position],) = transport.store(position, (part,))

    def _point_to_slot(
        self, position: int, module: nn.Module, tensors: Mapping[str, torch.Tensor]
    ) -> None:
        slot = self.slots.tensors[self._plan.schedule.slot[position]]
        for (name, tensor), target in zip(tensors.items(), slot, strict=True):
            alike = (tensor.shape, tensor.stride(), tensor.dtype) == (
                target.shape,
                target.stride(),
                target.dtype,
            )
            assert alike, f"series {self._plan.series.name!r}: layouts differ within the series"
            point(module, name, target)

    def reload(self, position: int, module: nn.Module) -> None:
        """Between two forwards: keep what the module's tensors hold now, at the same addresses.

        What this rank keeps of them is copied into the memory that it serves from, and the module
        reads from where it did before.
        """
        new = [held(module)[name].detach() for name in self.names]
        if self._transport is None:
            for served, tensor in zip(self.resident[position].values(), new, strict=True):
                served.copy_(tensor)
        elif self.owns(position):
            self._transport.reload(position, new)
        elif position in self.parts:
            part = join(cut(new, *self.stripe))
            assert part is not None, "it had a part before"
            self._transport.reload(position, (part,))
        else:
            self._transport.reload(position, ())
        for name, served in self.weights(position).items():
            point(module, name, served)

    def weights(self, position: int) -> Mapping[str, torch.Tensor]:
        """The tensors that `position`'s linear reads on this rank, by attribute name."""
        if self.owns(position):
            return self.resident[position]
        slot = self.slots.tensors[self._plan.schedule.slot[position]]
        return dict(zip(self.names, slot, strict=True))

    def resident_bytes(self) -> int:
        """Bytes of the storages that this rank keeps for good, as really allocated."""
        owned = (t for tensors in self.resident.values() for t in tensors.values())
        return storage_bytes([*owned, *self.parts.values()])
