"""Weights: what one rank stores of one series, and where each linear reads its weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from vllm_layershard.plan import SeriesPlan, Stripe
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.fingerprint import fingerprint
from vllm_layershard.runtime.formats import check_formats
from vllm_layershard.runtime.ranks.group import Group
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.tensors import byte_line, cut, held, join, point, storage_bytes
from vllm_layershard.runtime.transport import Transport


class Weights:
    """Filled while loading, position by position; then no address changes any more.

    `resident[p]` are the tensors that this rank owns, by attribute name, for the positions it owns;
    `parts[p]` its stripe of position p, where layers are striped; `slots` holds the others.
    """

    def __init__(
        self, plan: SeriesPlan, group: Group, transport: Transport, device: Device
    ) -> None:
        self.resident: dict[int, dict[str, torch.Tensor]] = {}
        self.parts: dict[int, torch.Tensor] = {}
        self.slots = SlotPool(0, (), device.torch_device)
        self.names: tuple[str, ...] = ()
        self._stripe: Stripe = (0, 0)
        self._plan = plan
        self._group = group
        self._transport = transport
        self._device = device

    def owns(self, position: int) -> bool:
        """Whether this rank stores the position's whole weight."""
        return self._plan.is_resident(position, self._group.group_rank)

    def check_formats(self, position: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Refuse tensors that lie in memory otherwise than in rows, if they are to move.

        Raises:
            HostError: one is in a format of the device's own.
        """
        if self._plan.moves:
            check_formats(self._device, self._plan.layer_name(position), tensors)

    def take(self, position: int, module: nn.Module, names: tuple[str, ...]) -> None:
        """Take over the module's tensors `names`, in their final form.

        An owner stores them, in memory that its transport can send from; of a striped layer every
        rank stores its part. Elsewhere they become aliases of the slot that the plan gives the
        position, and what they were before is freed.

        Raises:
            HostError: the transport has no memory for them.
        """
        tensors = {name: held(module)[name] for name in names}
        if not self.names:
            self._begin(tensors)
        assert names == self.names, f"series {self._plan.series.name!r}: {names} after {self.names}"
        if self.owns(position):
            stored = self._transport.store(position, [t.detach() for t in tensors.values()])
            self.resident[position] = dict(zip(names, stored, strict=True))
            for (name, tensor), target in zip(tensors.items(), stored, strict=True):
                if target.data_ptr() != tensor.data_ptr():
                    point(module, name, target)
            return
        if self._plan.is_striped:
            self._store_part(position, tensors.values())
        self._point_to_slot(position, module, tensors)

    def _begin(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """All positions are like the first: slots and stripes are of its size."""
        self.names = tuple(tensors)
        num_slots = self._plan.schedule.num_slots
        self.slots = SlotPool(num_slots, tuple(tensors.values()), self._device.torch_device)
        if self._plan.is_striped:  # the plan so far knows the bytes as they were loaded
            nbytes = sum(byte_line(tensor).numel() for tensor in tensors.values())
            self._stripe = self._plan.stripes_of(nbytes)[self._group.group_rank]

    def _store_part(self, position: int, tensors: Iterable[torch.Tensor]) -> None:
        part = join(cut(tensors, *self._stripe))
        if part is not None:
            (self.parts[position],) = self._transport.store(position, (part,))

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

    def end_loading(self, plan: SeriesPlan) -> None:
        """Go on under the final plan, which knows the bytes as processed and decides the same."""
        name = self._plan.series.name
        decided = (self._plan.owner, self._plan.loader, self._plan.schedule)
        assert (plan.owner, plan.loader, plan.schedule) == decided, (
            f"series {name!r}: the plan changed while loading"
        )
        if plan.is_striped:
            assert plan.stripes[self._group.group_rank] == self._stripe, (
                f"series {name!r}: it was cut otherwise than the plan says"
            )
        self._plan = plan

    def reload(self, position: int, module: nn.Module) -> int:
        """While no rank reads: store what the module's tensors hold now, at the same addresses.

        Not collective; the next forward moves the new bytes.

        Of the new tensors this rank's part is copied into the memory that it serves from. The
        module reads from where it did before. Returns the fingerprint of the new weight.

        Raises:
            HostError: a new tensor is in a format of the device's own.
        """
        new = {name: held(module)[name].detach() for name in self.names}
        self.check_formats(position, new)
        given = fingerprint(tuple(new.values())) if self._plan.moves else 0
        if self.owns(position):
            self._transport.reload(position, tuple(new.values()))
        elif position in self.parts:
            part = join(cut(new.values(), *self._stripe))
            assert part is not None, "it had a part before"
            self._transport.reload(position, (part,))
        else:
            self._transport.reload(position, ())
        for name, served in self.read_at(position).items():
            point(module, name, served)
        return given

    def read_at(self, position: int) -> Mapping[str, torch.Tensor]:
        """The tensors that `position`'s linear reads on this rank, by attribute name."""
        if self.owns(position):
            return self.resident[position]
        slot = self.slots.tensors[self._plan.schedule.slot[position]]
        return dict(zip(self.names, slot, strict=True))

    def rows_at(self, position: int) -> torch.Tensor | None:
        """This rank's rows of a weight that is cut at rows: [n, D_in], or None for none of them."""
        part, like = self.parts.get(position), self.slots.tensors[0][0]
        return None if part is None else part.view(like.dtype).view(-1, like.shape[1])

    def resident_bytes(self) -> int:
        """Bytes of the storages that this rank stores for good, as really allocated."""
        owned = (t for tensors in self.resident.values() for t in tensors.values())
        return storage_bytes([*owned, *self.parts.values()])
