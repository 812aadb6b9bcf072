"""Board: each rank shows one document, in the place of its former one, and reads the others'.

No call is collective. A document is plain data of JSON's types.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from torch._C._distributed_c10d import Store

from vllm_layershard.errors import TransportError
from vllm_layershard.runtime.ranks.bounded import bounded
from vllm_layershard.runtime.ranks.messages import decoded
from vllm_layershard.runtime.ranks.rendezvous import Rendezvous

_T = TypeVar("_T")

_SUBJECT = "reload"

_ANSWER_S = 20.0
"""How long a rank waits for one answer of the store. Its holder is never busy for so long."""


class Board(ABC):
    """`ranks` are the global ranks that have a place on it, `rank` this process's."""

    ranks: tuple[int, ...]
    rank: int

    @abstractmethod
    def show(self, document: Any) -> None:
        """Show the others this document, in one step.

        Raises:
            NodeError, TransportError: it cannot be shown, or nobody knows whether it is.
        """

    @abstractmethod
    def read(self, rank: int) -> Any:
        """What that rank shows; None if nothing: it has not come so far, or has ended.

        Raises:
            TransportError: the board does not answer.
        """


class NodeBoard(Board):
    """In the node's shared memory, among replicas. What a dead rank has shown is not there."""

    def __init__(self, rendezvous: Rendezvous, ranks: tuple[int, ...]) -> None:
        self.ranks = ranks
        self.rank = rendezvous.rank
        self._rendezvous = rendezvous

    def show(self, document: Any) -> None:
        """In a new piece, which takes the former one's name in one step."""
        self._rendezvous.publish(_SUBJECT, document)

    def read(self, rank: int) -> Any:
        """None as soon as that rank has ended."""
        return self._rendezvous.look(_SUBJECT, rank)


class StoreBoard(Board):
    """In a key-value store of torch.distributed, among ranks in lockstep.

    `store` is shared by exactly these ranks, and by nothing else. What a rank has shown stays when
    it ends, unless that was the store's holder.
    """

    def __init__(self, store: Store, rank: int, ranks: tuple[int, ...]) -> None:
        self.ranks = ranks
        self.rank = rank
        self._store = store

    def show(self, document: Any) -> None:
        """Where it raises, it may be shown all the same."""
        self._asked(lambda: self._store.set(str(self.rank), json.dumps(document)))

    def read(self, rank: int) -> Any:
        """A rank that has ended shows what it has shown last."""
        shown = self._asked(lambda: self._shown(str(rank)))
        return None if shown is None else decoded(rank, shown)

    def _shown(self, key: str) -> bytes | None:
        return self._store.get(key) if self._store.check([key]) else None

    def _asked(self, work: Callable[[], _T]) -> _T:
        try:
            return bounded(work, _ANSWER_S)
        except RuntimeError as error:
            said = str(error).strip().splitlines()[0]
            raise TransportError(
                f"rank {self.rank}: the world's key-value store does not answer: rank 0, which "
                f"holds it, died or hangs; see its log, then restart the server ({said})"
            ) from error
