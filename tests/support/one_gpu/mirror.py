"""Mirror: a process group of two ranks over one of this rank alone, since NCCL wants a GPU a rank.

The other rank mirrors this one: each block that it would send is the one that this rank sends to
itself, cut to the size that is expected. Where this rank sends itself nothing, it is ones. Every
block that comes goes through the group of one, by the backend's own collectives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from one_gpu.copies import Copies
from one_gpu.tokens import RANKS, TokenStack
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import RankGroup

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
"""By the names that torch 2.13 has for them, or else by their former ones."""


class Works:
    """What is to be waited for, and done then."""

    def __init__(self, works: Sequence[Any], then: Callable[[], object]) -> None:
        self._works = works
        self._then = then

    def wait(self) -> None:
        for work in self._works:
            work.wait()
        self._then()


class Mirror:
    """What the product asks of a process group that moves tokens, on group rank 0."""

    def __init__(self, alone: dist.ProcessGroup) -> None:
        self._alone = alone
        self.collectives = 0
        """So many have been asked for."""

    def all_to_all_single(
        self,
        output: torch.Tensor,
        given: torch.Tensor,
        received: Sequence[int],
        sent: Sequence[int],
        options: Any,
    ) -> Works | None:
        own = given[: sent[0] if sent else len(given) // RANKS]
        blocks = output.split([*received] or [len(output) // RANKS] * RANKS)
        if len(own) == 0:
            output.fill_(1)
            return None
        pairs = [(block, own[: len(block)]) for block in blocks if len(block) > 0]
        return self._ask(dist.all_to_all_single, pairs, options)

    def all_gather_single(
        self, output: torch.Tensor, given: torch.Tensor, options: Any
    ) -> Works | None:
        return self._ask(_all_gather, [(block, given) for block in output.chunk(RANKS)], options)

    def reduce_scatter_single(
        self, output: torch.Tensor, given: torch.Tensor, options: Any
    ) -> Works | None:
        pairs = [(output, given.chunk(RANKS)[0])]
        return self._ask(_reduce_scatter, pairs, options, lambda: output.add_(output))

    def _ask(
        self,
        collective: Callable[..., Any],
        pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
        options: Any,
        then: Callable[[], object] = lambda: None,
    ) -> Works | None:
        """Of the group of one. What is asked for asynchronously is the caller's to wait for."""
        self.collectives += 1
        works = [collective(*pair, group=self._alone, async_op=options.asyncOp) for pair in pairs]
        if options.asyncOp:
            return Works(works, then)
        then()
        return None

    # By the names that torch had for them until 2.13.
    alltoall_base = all_to_all_single
    _allgather_base = all_gather_single
    _reduce_scatter_base = reduce_scatter_single


def mirrored(
    kind: type[TokenStack], device: Device, shape: tuple[int, int], alone: dist.ProcessGroup
) -> TokenStack:
    """Rank 0 of two. The other's weights are copied on the side stream; tokens have their group.

    `shape` is the number of layers, and the prefetch step.
    """
    group = RankGroup(
        (0, 1),
        0,
        data=None,  # type: ignore[arg-type]
        control=None,  # type: ignore[arg-type]
        apart=Mirror(alone),  # type: ignore[arg-type]
    )

    def begin(plan: SeriesPlan, whole: list[torch.Tensor]) -> LoadingSeries:
        return LoadingSeries(plan, group, device, Copies(device, whole))

    return kind("mirrored", group, device, shape, begin)
