"""Collectives of two ranks that share a simulated device, as NCCL and HCCL run them.

A collective begins when its stream comes to it, and ends when the ranks that it needs have begun
theirs. Those of one communicator are matched in the order in which they begin. Source: NCCL's user
guide, "Collective Operations"; torch 2.12, ProcessGroupNCCL.cpp, `collective`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from simulated.nccl import Work
from simulated.streams import Accelerator, Stream

Sent = Sequence[torch.Tensor]
"""By receiver."""


class Call(NamedTuple):
    """What all ranks must agree on: a collective's name, its root, and a size that all have."""

    name: str
    root: int = 0
    size: int = 0


class Communicator:
    """Of all ranks. With `own_streams` each rank's collectives run on a stream of the group's own.

    Else that is so of those that are asked for asynchronously.
    """

    def __init__(self, accelerator: Accelerator, ranks: int, *, own_streams: bool = False) -> None:
        self.rounds: list[dict[int, tuple[Call, Sent]]] = []
        self.members = [Member(self, accelerator, rank, own_streams) for rank in range(ranks)]

    def begin(self, rank: int, at: int, call: Call, sent: Sent) -> None:
        """A rank's collective number `at` begins; it must be the one that the others have there."""
        while len(self.rounds) <= at:
            self.rounds.append({})
        for other, (theirs, _) in self.rounds[at].items():
            assert theirs == call, f"collective {at}: rank {other} {theirs}, rank {rank} {call}"
        self.rounds[at][rank] = call, [tensor.clone() for tensor in sent]


class Member:
    """A rank's process group, as far as the product asks for it."""

    def __init__(
        self, communicator: Communicator, accelerator: Accelerator, rank: int, own_streams: bool
    ) -> None:
        self._communicator = communicator
        self._accelerator = accelerator
        self._rank = rank
        self._own: Stream = accelerator.Stream()
        self._always_own = own_streams
        self.log: list[Call] = []
        """What has begun."""
        self.given_on: list[Stream] = []
        """The current stream of each call."""

    def broadcast(self, tensors: Sequence[torch.Tensor], options: Any) -> Work | None:
        (tensor,), root = tensors, options.rootRank
        everyone = range(len(self._communicator.members))

        def arrive(sent: Mapping[int, Sent]) -> None:
            if self._rank != root:
                tensor.copy_(sent[root][self._rank])

        call = Call("broadcast", root, tensor.numel())
        return self._give(call, lambda: [tensor for _ in everyone], arrive, [root], options)

    def all_to_all_single(
        self,
        output: torch.Tensor,
        given: torch.Tensor,
        received: Sequence[int],
        sizes: Sequence[int],
        options: Any,
    ) -> Work | None:
        everyone = range(len(self._communicator.members))

        def split(tensor: torch.Tensor, parts: Sequence[int]) -> Sent:
            return tensor.split([*parts] or [len(tensor) // len(everyone)] * len(everyone))

        def arrive(sent: Mapping[int, Sent]) -> None:
            for rank, part in enumerate(split(output, received)):
                assert part.shape == sent[rank][self._rank].shape, f"from rank {rank}"
                part.copy_(sent[rank][self._rank])

        call = Call("all_to_all")
        return self._give(call, lambda: split(given, sizes), arrive, everyone, options)

    def all_gather_single(
        self, output: torch.Tensor, given: torch.Tensor, options: Any
    ) -> Work | None:
        everyone = range(len(self._communicator.members))

        def arrive(sent: Mapping[int, Sent]) -> None:
            for rank, part in enumerate(output.chunk(len(everyone))):
                part.copy_(sent[rank][self._rank])

        call = Call("all_gather", size=given.numel())
        return self._give(call, lambda: [given for _ in everyone], arrive, everyone, options)

    def reduce_scatter_single(
        self, output: torch.Tensor, given: torch.Tensor, options: Any
    ) -> Work | None:
        everyone = range(len(self._communicator.members))

        def arrive(sent: Mapping[int, Sent]) -> None:
            output.copy_(torch.stack([sent[rank][self._rank] for rank in everyone]).sum(dim=0))

        call = Call("reduce_scatter", size=given.numel())
        return self._give(call, lambda: given.chunk(len(everyone)), arrive, everyone, options)

    # By the names that torch had for them until 2.13.
    alltoall_base = all_to_all_single
    _allgather_base = all_gather_single
    _reduce_scatter_base = reduce_scatter_single

    def _give(
        self,
        call: Call,
        sent: Callable[[], Sent],
        arrive: Callable[[Mapping[int, Sent]], None],
        needed: Sequence[int],
        options: Any,
    ) -> Work | None:
        """Give it to a stream: replays of a graph begin it anew, each time under a new number."""
        rounds = self._communicator.rounds
        at = 0

        def begin() -> None:
            nonlocal at
            at = len(self.log)
            self.log.append(call)
            self._communicator.begin(self._rank, at, call, sent())

        def end() -> None:
            arrive({rank: tensors for rank, (_, tensors) in rounds[at].items()})

        here = self._accelerator.current_stream()
        self.given_on.append(here)
        on_own = self._always_own or options.asyncOp
        if on_own:
            self._own.wait_event(here.record_event())
        stream = self._own if on_own else here
        stream.give(begin)
        stream.pause(lambda: all(rank in rounds[at] for rank in needed))
        stream.give(end)
        return Work(self._accelerator, stream.record_event()) if on_own else None
