"""Presence: this rank's document on the board, and what it reads there of the others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from vllm_layershard.errors import LayerShardError
from vllm_layershard.runtime.reload.board import Board
from vllm_layershard.runtime.reload.order import Order

_LOOK_S = 0.05
_BEAT_S = 1.0
"""How often, at most, a rank that is at work tells the others that it goes on."""


class Presence:
    """`shown` is the document: see the note [All or none] in act.py.

    `patience_s` is for a wait to begin, `end_patience_s` for a rank that has begun and shows
    nothing new.

    `attempt` names what the rank was asked to do, `bound` the round that it has bound itself to;
    `failed` and `says` are of the attempt, `ended` of the last round that it has ended. `begun`
    says whether it has ever begun. The first rank's `order` is its last.
    """

    def __init__(self, board: Board, patience_s: float, end_patience_s: float) -> None:
        self.board = board
        self.patience_s = patience_s
        self.end_patience_s = end_patience_s
        self.lead = board.ranks[0]
        self.others = tuple(rank for rank in board.ranks if rank != board.rank)
        self.shown: dict[str, Any] = {"attempt": None, "bound": None, "begun": False, "beats": 0}
        self._beaten_s = 0.0

    def show(self, **changed: Any) -> None:
        """Show the document with these values changed.

        Raises:
            NodeError, TransportError: it cannot be shown, or nobody knows whether it is.
        """
        shown = {**self.shown, **changed}
        self.board.show(shown)
        self.shown = shown

    def turn_back(self) -> None:
        """Show that this rank takes part in nothing; not whether it could be shown."""
        with suppress(LayerShardError):
            self.show(attempt=None, bound=None)

    def say(self, order: Order, **changed: Any) -> Order:
        """On the first rank: show the order, and these values changed."""
        self.show(order=order._asdict(), **changed)
        return order

    def beat(self) -> None:
        """Tell the others that this rank goes on, at most once in a while; never raises."""
        now = time.monotonic()
        if now - self._beaten_s >= min(_BEAT_S, self.patience_s / 4):
            self._beaten_s = now
            with suppress(LayerShardError):  # then they wait no longer for it than they would
                self.show(beats=self.shown["beats"] + 1)

    def deadline(self, times: int = 1) -> float:
        """The moment at which so many times a rank's patience is over, for `look_again`."""
        return time.monotonic() + times * self.patience_s

    def end_deadline(self) -> float:
        """The moment at which a rank that does not go on is waited for no longer."""
        return time.monotonic() + self.end_patience_s

    def look_again(self, deadline: float) -> bool:
        """Wait a moment; False if the deadline has passed."""
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
        return True

    def gone(self, ranks: Sequence[int]) -> str:
        """What to say of ranks that show nothing."""
        return f"rank {_and(ranks)} has ended, or has not finished loading"

    def late(self, ranks: Sequence[int]) -> str:
        """What to say of ranks for which there was no more patience."""
        return (
            f"rank {_and(ranks)} did not come within {self.patience_s:g} s: it was not asked to "
            "reload, or is in a forward that waits for this rank, or hangs"
        )

    def stuck(self, ranks: Sequence[int]) -> str:
        """What to say of ranks that have begun, and have not gone on."""
        return f"rank {_and(ranks)} has begun, and has not gone on for {self.end_patience_s:g} s"


def _and(ranks: Sequence[int]) -> str:
    return " and ".join(map(str, ranks))
