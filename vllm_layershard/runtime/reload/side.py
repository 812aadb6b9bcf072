"""Side: what a rank does in an act, as the one that leads or as one of the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from vllm_layershard.runtime.reload.order import Order
from vllm_layershard.runtime.reload.presence import Presence

Objection = Callable[[Sequence[Any]], str | None]
"""Why all may not go on, from what each rank says in the board's order; None if they may."""


class Side(ABC):
    """One rank's, over its presence on the board."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence

    @abstractmethod
    def begin(self, attempt: str, objection: Objection) -> Order:
        """With the attempt shown: the order to `go`, or to `refuse`.

        Raises:
            ReloadError, NodeError, TransportError: no rank begins.
            InDoubt: others may have begun.
        """

    @abstractmethod
    def end(self, order: Order, says: Any, objection: Objection) -> Order:
        """With the end of what was ordered shown: whether all is `whole`, or `broken`.

        Raises:
            NodeError, TransportError: nobody knows.
        """
