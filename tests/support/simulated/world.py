"""Both ranks of two on one simulated device: between them tokens move, and weights beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from one_gpu.tokens import RANKS, TokenStack
from simulated.communicator import Communicator
from simulated.deferred import Deferred
from simulated.rank import gpu, over_hccl
from simulated.streams import Accelerator, Graph
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.split_mlp import bind_mlps
from vllm_layershard.runtime.transport import Broadcast

LAYERS = 3

T = TypeVar("T")

Kind = type[TokenStack]
Given = Sequence[torch.Tensor]
"""By rank."""


class World:
    """Each rank has a compute stream and a side stream; weights and tokens a communicator each."""

    def __init__(
        self, accelerator: Accelerator, kind: Kind, step: int, *, own_streams: bool = False
    ) -> None:
        self.accelerator = accelerator
        self.compute = [accelerator.Stream() for _ in range(RANKS)]
        self.weights, self.tokens = (
            Communicator(accelerator, RANKS, own_streams=own_streams) for _ in range(2)
        )
        make_device = over_hccl if own_streams else gpu
        self.ranks: list[TokenStack] = []
        for rank in range(RANKS):
            device = make_device(accelerator)
            group = RankGroup(
                (0, 1),
                rank,
                data=self.weights.members[rank],  # type: ignore[arg-type]
                control=None,  # type: ignore[arg-type]
                apart=self.tokens.members[rank],  # type: ignore[arg-type]
            )

            def begin(
                plan: SeriesPlan, _: Any, group: RankGroup = group, device: Any = device
            ) -> LoadingSeries:
                return LoadingSeries(plan, group, device, Broadcast(group, device))

            self.ranks.append(kind(f"rank{rank}", group, device, (LAYERS, step), begin))
        bind_mlps([mlp for stack in self.ranks for mlp in stack.mlps])  # of one process

    def given(self, counts: Sequence[int], seed: int) -> list[torch.Tensor]:
        """The tokens of both ranks."""
        return self.ranks[0].tokens(counts, seed)

    def on_each(self, work: Callable[[TokenStack, int], T]) -> list[T]:
        """What each rank says: one is given all its work, and then the other."""
        said = []
        for rank, (stream, stack) in enumerate(zip(self.compute, self.ranks, strict=True)):
            streams = self.accelerator
            with torch.inference_mode(), Deferred(streams), streams.stream(stream):
                said.append(work(stack, rank))
        self.accelerator.synchronize()
        return said

    def capture(self, work: Callable[[], T]) -> tuple[Graph, T]:
        """A graph of what a rank does, and what its replays leave."""
        with self.accelerator.capture() as graph:
            said = work()
        return graph, said

    def faults(self, said: Sequence[Given], forwards: Sequence[Given]) -> Iterator[str]:
        """Where ranks say of a forward's tokens something else than one process: by rank."""
        for at, everyone in enumerate(forwards):
            for rank, right in enumerate(self.ranks[0].expected(everyone)):
                if not torch.equal(said[rank][at], right):
                    yield f"forward {at}, rank {rank}: another result"
