"""Two ranks in one process, each on a thread of its own: their board, and what both do at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from vllm_layershard.runtime.ranks.group import Group
from vllm_layershard.runtime.reload.board import Board

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
