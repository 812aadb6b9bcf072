"""LoadingSeries: one series on one rank while its layers are loaded; `finish` serves it."""

from __future__ import annotations

from torch import nn

from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.formats import check_formats
from vllm_layershard.runtime.former import Former, memory_of
from vllm_layershard.runtime.ranks.first_arrivals import FirstArrivals
from vllm_layershard.runtime.ranks.group import Group, RankGroup
from vllm_layershard.runtime.ranks.small_tensors import SmallTensors
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.tensors import flat, held, materialise
from vllm_layershard.runtime.transport import Transport
from vllm_layershard.runtime.weights import Weights


class LoadingSeries:
    """For each position in turn `receive` its weight and `adopt` it; then `finish`, once.

    `plan` knows the bytes as the checkpoint has them. `transport` is that of the plan's series
    alone. With `verify` each layer's first arrival will be compared with its loader's bytes.
    """

    def __init__(
        self,
        plan: SeriesPlan,
        group: Group,
        device: Device,
        transport: Transport,
        *,
        verify: bool = False,
    ) -> None:
        self._plan = plan
        self._group = group
        self._device = device
        self._transport = transport
        self._weights = Weights(plan, group, transport, device)
        self._small_tensors = SmallTensors(group, plan)
        self._first_arrivals = FirstArrivals(group, plan) if verify and plan.moves else None
        self._former = Former()
        self._adopted: set[int] = set()
        self._each_loads = not plan.moves

    def loads(self, position: int) -> bool:
        """Whether this rank reads the position's weight from the checkpoint, to keep it.

        Of a replicated series every rank does so.
        """
        return self._each_loads or (self._is_loader(position) and not self.passes(position))

    def passes(self, position: int) -> bool:
        """Whether this rank reads the position's weight to process it, and then lets go of it.

        So it is with ranks that are not in lockstep, of what they do not store whole: they cannot
        send each other what they have loaded.
        """
        return self._plan.moves and not self._group.lockstep and not self._weights.owns(position)

    def _is_loader(self, position: int) -> bool:
        return self._plan.loader[position] == self._group.group_rank

    def receive(self, position: int, module: nn.Module, *, leave: tuple[str, ...] = ()) -> None:
        """Fill the module's parameters, but for `leave`, with the weight as its loader has read it.

        Collective in a group in lockstep: the loader's parameters hold the weight, those of the
        other ranks may be on meta. Elsewhere each rank has read the weight itself.

        Raises:
            HostError: a parameter is in a format of the device's own.
            TransportError: a rank of the group is gone.
        """
        if isinstance(self._group, RankGroup) and not self._each_loads:
            if not self._is_loader(position):
                materialise(module, self._device.torch_device, leave=leave)
            self._broadcast(self._group, position, module, leave)

    def _broadcast(
        self, group: RankGroup, position: int, module: nn.Module, leave: tuple[str, ...]
    ) -> None:
        sent = {
            name: param
            for name, param in sorted(held(module).items())
            if isinstance(param, nn.Parameter) and name not in leave
        }
        check_formats(self._device, self._plan.layer_name(position), sent)
        for param in sent.values():
            try:
                group.broadcast(flat(param), self._plan.loader[position])
            except RuntimeError as error:
                raise group.lost_layer(self._plan, position, error) from error

    def adopt(self, position: int, module: nn.Module, names: tuple[str, ...]) -> None:
        """Take over the module's large tensors `names`, in their final form: see Weights.take.

        Raises:
            HostError: one is in a format of the device's own, or has gaps; or the transport has no
                memory for them.
        """
        assert position not in self._adopted, f"{self._plan.layer_name(position)} is adopted twice"
        large = {name: held(module)[name] for name in names}
        self._weights.check_formats(position, large)
        self._small_tensors.note(position, module, names)
        if self._first_arrivals is not None and self._is_loader(position):
            self._first_arrivals.note(position, tuple(large.values()))
        before = memory_of(large)
        self._weights.take(position, module, names)
        self._former.watch(self._plan.layer_name(position), before, module)
        self._adopted.add(position)

    def finish(self, plan: SeriesPlan) -> ShardedSeries:
        """End loading under the final plan, and serve. All ranks of the group do so.

        `plan` knows the bytes as processed, and decides the same as the one given at birth.

        Raises:
            MismatchError: the ranks differ in what they store beside the large tensors.
            HostError: a kernel keeps a weight's memory.
            HostError, TransportError: a rank's memory cannot be reached.
        """
        missing = len(plan.series) - len(self._adopted)
        assert missing == 0, f"series {plan.series.name!r}: {missing} layers are missing"
        self._former.require_let_go()
        self._weights.end_loading(plan)
        self._small_tensors.compare()
        self._transport.open(plan, self._weights.slots)
        if self._first_arrivals is not None:
            self._first_arrivals.gather()
        return ShardedSeries(
            plan, self._group, self._weights, self._transport, self._first_arrivals
        )
