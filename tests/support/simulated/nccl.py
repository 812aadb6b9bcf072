"""Broadcasts as torch's ProcessGroupNCCL gives them to streams; of one rank, which has all bytes.

Source: torch 2.12, ProcessGroupNCCL.cpp, `collective`. Asynchronous ones run on a stream of the
group's own, behind the current one, and return what waits for them. Others run on the current
stream, and return nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from simulated.streams import Accelerator, Event


class Work:
    """A broadcast on the group's own stream."""

    def __init__(self, accelerator: Accelerator, end: Event) -> None:
        self._accelerator = accelerator
        self._end = end

    def wait(self) -> None:
        """The current stream goes on behind it."""
        self._accelerator.current_stream().wait_event(self._end)


class Nccl:
    """Of rank 0. Weights are sent in turn, again and again: `source` in this `order`."""

    def __init__(
        self, accelerator: Accelerator, source: Sequence[torch.Tensor], order: Sequence[int]
    ) -> None:
        self._accelerator = accelerator
        self._source = source
        self._order = order
        self._own = accelerator.Stream()
        self.sent = 0
        """Broadcasts so far."""
        self.on_own = 0
        """Those of them that ran on the group's own stream."""

    def broadcast(self, tensors: Sequence[torch.Tensor], options: Any) -> Work | None:
        """Give it to a stream."""
        (tensor,) = tensors
        sent = self._source[self._order[self.sent % len(self._order)]]
        self.sent += 1

        def arrive() -> None:
            if options.rootRank:  # rank 0 sends its own
                tensor.copy_(sent.flatten().view(torch.uint8))

        here = self._accelerator.current_stream()
        if not options.asyncOp:
            here.give(arrive)
            return None
        self.on_own += 1
        self._own.wait_event(here.record_event())
        self._own.give(arrive)
        return Work(self._accelerator, self._own.record_event())
