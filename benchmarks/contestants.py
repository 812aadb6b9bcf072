"""Who moves a stack's weights, and how: layer sharding, pulls, its first version, FSDP2.

Each runs the same stack: in every layer half of the compute, the linear, the other half. A linear
here samples its weight, so that a wrong byte changes the result and the compute is what is given.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from vllm_layershard.config import TransportChoice
from vllm_layershard.manual import finish_loading, reach_layer, register_layer, wait_layer

SAMPLED = 4093


class Sampled(nn.Module):
    """Stands for a linear of `layer_bytes`: adds samples of its weight, by layer, to the input.

    `spent_s` is what all of them have taken on this process's CPU: it is compute, too.
    """

    spent_s = 0.0

    def __init__(self, layer_id: int, layer_bytes: int, device: torch.device) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(layer_id)
        values = torch.randint(-64, 64, (layer_bytes // 4096, 1024), generator=generator)
        self.weight = nn.Parameter(values.float().to(device), requires_grad=False)
        self.scale = layer_id + 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        started = time.perf_counter()
        x = x + self.weight.flatten()[::SAMPLED].sum() * self.scale
        if x.device.type == "cpu":
            Sampled.spent_s += time.perf_counter() - started
        return x


class Contestant(ABC):
    """A stack of layers and a way to have their weights there in time."""

    def __init__(self, name: str, step: int, linears: list[Sampled]) -> None:
        self.name = name
        self.step = step
        self.linears = linears
        self.x = torch.zeros((), device=linears[0].weight.device)

    @abstractmethod
    def forward(self, half: Callable[[], None]) -> torch.Tensor:
        """One forward; `half` is half a layer's compute. Returns the sum of all samples."""

    def settle(self) -> None:
        """Wait for what is in flight when a forward has ended."""
        return


class Unsharded(Contestant):
    """Every rank has every weight: what the compute takes alone."""

    def forward(self, half: Callable[[], None]) -> torch.Tensor:
        x = self.x
        for linear in self.linears:
            half()
            x = linear(x)
            half()
        return x


class LayerSharding(Contestant):
    """This project's runtime, through its manual API, with broadcasts."""

    transport: TransportChoice = "broadcast"
    keeps: int = 0
    """Layers ahead of the series that every rank keeps."""

    def __init__(self, name: str, step: int, linears: list[Sampled]) -> None:
        super().__init__(name, step, linears)
        self.shared = linears[self.keeps :]
        for layer_id, linear in enumerate(self.shared, start=self.keeps):
            register_layer(
                linear,
                series=name,
                layer_id=layer_id,
                prefetch_step=step,
                transport=self.transport,
            )
        finish_loading(name)

    def forward(self, half: Callable[[], None]) -> torch.Tensor:
        x = self.x
        for linear in self.linears[: self.keeps]:
            reach_layer(self.shared[0])
            half()
            x = linear(x)
            half()
        for linear in self.shared:
            if linear is not self.shared[0] or not self.keeps:
                reach_layer(linear)
            half()
            wait_layer(linear)
            x = linear(x)
            half()
        return x


class KeepFirst(LayerSharding):
    """The same with `keep_first`: the first movements start at the boundary of a kept layer."""

    keeps = 1


class Pull(LayerSharding):
    """The same with pulls: each rank copies out of the others' memory by itself."""

    transport = "pull"


class FirstVersion(Contestant):
    """vllm-ascend's first version, from its description (it was removed in July 2026).

    `step + 1` windows and a pointer that rolls on from forward to forward: reaching layer i, every
    rank starts to broadcast layer (i + step) % n into the next window, so that the first layers of
    the next forward are under way at the end of this one. A layer has no window of its own. It is
    given the best place to reach a layer, its boundary; it stood in the attention.
    """

    def __init__(self, name: str, step: int, linears: list[Sampled]) -> None:
        super().__init__(name, step, linears)
        size, rank = dist.get_world_size(), dist.get_rank()
        self.windows = [torch.empty_like(linears[0].weight) for _ in range(step + 1)]
        self.works: dict[int, dist.Work] = {}
        self.offset = 0
        self.size, self.rank = size, rank
        for layer_id in range(step):
            self.fetch(layer_id)

    def fetch(self, layer_id: int) -> None:
        linear, owner = self.linears[layer_id], layer_id % self.size
        if owner != self.rank:
            linear.weight = nn.Parameter(self.windows[self.offset], requires_grad=False)
        self.offset = (self.offset + 1) % len(self.windows)
        self.works[layer_id] = dist.broadcast(linear.weight.data, src=owner, async_op=True)

    def forward(self, half: Callable[[], None]) -> torch.Tensor:
        x = self.x
        for layer_id, linear in enumerate(self.linears):
            self.fetch((layer_id + self.step) % len(self.linears))
            half()
            self._arrive(layer_id)
            x = linear(x)
            half()
        return x

    def settle(self) -> None:
        for layer_id in tuple(self.works):
            self._arrive(layer_id)

    def _arrive(self, layer_id: int) -> None:
        work = self.works.pop(layer_id, None)
        if work is not None:  # else it arrived after the forward before
            work.wait()


class FullyShard(Contestant):
    """FSDP2: 1/K of every weight on every rank, all-gathered `step` linears ahead.

    Its collectives are made asynchronous, as on a GPU, and the first one starts with the forward.
    """

    def __init__(self, name: str, step: int, linears: list[Sampled]) -> None:
        super().__init__(name, step, linears)
        stack = nn.Sequential(*linears)
        for linear in linears:
            fully_shard(linear)
        fully_shard(stack)
        stack._set_unshard_async_op(True)  # type: ignore[operator]
        for layer_id, linear in enumerate(linears):
            ahead = linears[layer_id + 1 : layer_id + 1 + step]
            linear.set_modules_to_forward_prefetch(ahead)  # type: ignore[operator]
        with torch.no_grad():
            stack(self.x)  # the root finds its parts

    def forward(self, half: Callable[[], None]) -> torch.Tensor:
        x = self.x
        if self.step:
            self.linears[0].unshard(async_op=True)  # type: ignore[operator]
        for linear in self.linears:
            half()
            x = linear(x)
            half()
        return x


CONTESTANTS: dict[str, type[Contestant]] = {
    "layer sharding": LayerSharding,
    "keep_first": KeepFirst,
    "pull": Pull,
    "first version": FirstVersion,
    "FSDP2": FullyShard,
}
