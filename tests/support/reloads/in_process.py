"""Two ranks in one process, each on a thread of its own: their board, their memory, and what both
do at once.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from vllm_layershard.runtime.peer_memory import Exports, Parts, Sizes
from vllm_layershard.runtime.ranks.group import Group
from vllm_layershard.runtime.reload.board import Board
from vllm_layershard.runtime.tensors import byte_line

RANKS = (0, 1)
MOST_S = 30.0
"""Against a hang."""


class Places(Board):
    """A board in this process's memory."""

    def __init__(self, rank: int, shown: dict[int, Any]) -> None:
        self.ranks, self.rank = RANKS, rank
        self._shown = shown

    def show(self, document: Any) -> None:
        self._shown[self.rank] = json.dumps(document)

    def read(self, rank: int) -> Any:
        return json.loads(self._shown[rank]) if rank in self._shown else None


class Alone(Group):
    """One of two ranks; what it says the other says, too."""

    lockstep = False
    rejoins = False
    ranks = RANKS
    name = "both"

    def __init__(self, rank: int) -> None:
        self.group_rank = rank

    def gather(self, value: Any) -> list[Any]:
        return [value, value]


class Beside(Exports):
    """Both ranks' memory in one process: `stored[rank]` are the tensors of each position."""

    def __init__(self, rank: int, stored: dict[int, dict[int, tuple[torch.Tensor, ...]]]) -> None:
        self._rank, self._stored = rank, stored

    def store(self, position: int, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        mine = self._stored.setdefault(self._rank, {})
        mine[position] = tuple(tensor.clone() for tensor in tensors)
        return mine[position]

    def handles(self) -> Any:
        return None

    def open(self, rank: int, handles: Any, expected: Mapping[int, Sizes]) -> Mapping[int, Parts]:
        return {p: tuple(map(byte_line, tensors)) for p, tensors in self._stored[rank].items()}

    def whereabouts(self) -> Any:
        return None

    def reopen(self, rank: int, whereabouts: Any) -> None:
        raise AssertionError("nobody comes back")

    def settle(self) -> None:
        return None

    def check_peers(self) -> None:
        return None


def together(*works: Callable[[], None]) -> list[BaseException | None]:
    """What each raises, all at once."""
    raised: list[BaseException | None] = [None] * len(works)

    def run(index: int, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            raised[index] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(MOST_S)
        assert not thread.is_alive(), "it hangs"
    return raised
