"""Act: what all ranks of a board do together, or none of them does.

Note [All or none]
The first of the ranks leads. A rank shows that it is ready, and waits. Once all are ready, the lead
proposes; each rank binds itself to the proposal; once all are bound, the lead says go.

A rank that is not bound may turn back whenever it likes: nobody can begin without it. So one that
does not come, or cannot begin, ends in a refusal on every rank, and nothing has changed. A rank
that is bound no longer turns back. If it does not hear what the lead decided, others may have
begun, and it must take what they share for broken.

Each ends by showing how it went. The lead says `whole` once all have ended well, else `broken`. Who
does not hear it takes it for broken.

A round is known by a random name, and whom it binds by a random name for each rank's attempt. No
rank counts: one that was asked alone, or twice, is never taken for another's partner.
"""

from __future__ import annotations

from contextlib import suppress
from secrets import token_hex
from typing import Any

from vllm_layershard.errors import LayerShardError, ReloadError, TransportError
from vllm_layershard.runtime.reload.board import Board
from vllm_layershard.runtime.reload.lead import Lead
from vllm_layershard.runtime.reload.member import Member
from vllm_layershard.runtime.reload.order import InDoubt, Order, value_in
from vllm_layershard.runtime.reload.presence import Presence
from vllm_layershard.runtime.reload.side import Objection, Side

PATIENCE_S = 180.0
"""How long a rank waits for the others to get ready. They were asked within the same second; the
slowest may still be in a long forward."""


END_PATIENCE_S = 1800.0
"""How long a rank waits for one that has begun and brings no sharded weight: it may be reading the
others from a cold network disk."""


class Act:
    """One kind of act, again and again. `patience_s` bounds each wait to begin, and to end.

    Without it these are PATIENCE_S and END_PATIENCE_S.

    `begin`, then what is to be done, with `beat` between its steps, then `end`, or `fail`.
    """

    def __init__(self, board: Board, patience_s: float | None = None) -> None:
        waits = (PATIENCE_S, END_PATIENCE_S) if patience_s is None else (patience_s, patience_s)
        self._presence = Presence(board, *waits)
        kind = Lead if board.rank == board.ranks[0] else Member
        self._side: Side = kind(self._presence)
        self._order: Order | None = None
        self.beat = self._presence.beat
        """Tells the others that this rank goes on, at most once in a while; never raises."""

    @property
    def rank(self) -> int:
        """This process's."""
        return self._presence.board.rank

    @property
    def ranks(self) -> tuple[int, ...]:
        """All that take part."""
        return self._presence.board.ranks

    def join(self) -> bool:
        """Show that this rank is there; whether another has begun an act before it came.

        Raises:
            NodeError, TransportError: it cannot be shown.
        """
        presence = self._presence
        presence.show()
        return any(bool(value_in(presence.board.read(r), "begun")) for r in presence.others)

    def begin(self, says: Any, failed: Exception | None, objection: Objection) -> list[Any]:
        """Return once every rank is about to begin: what each `says`, in the board's order.

        A rank that `failed` to get ready ends the attempt of all. So does an objection of the
        lead's to what the ranks say.

        Raises:
            ReloadError, NodeError, TransportError: no rank begins, for this reason.
            InDoubt: others may have begun.
        """
        presence, attempt = self._presence, token_hex(8)
        fault = None if failed is None else error_text(failed)
        presence.show(attempt=attempt, bound=None, failed=fault, says=says)
        try:
            order = self._side.begin(attempt, objection)
        except BaseException:
            presence.turn_back()
            raise
        if order.word == "refuse":
            presence.turn_back()
            raise ReloadError(order.why)
        told = [says if rank == self.rank else self._said_by(rank) for rank in self.ranks]
        self._order = order
        return told

    def _said_by(self, rank: int) -> Any:
        """What a rank said as it began: it shows it until it has heard how all ended."""
        shown = self._presence.board.read(rank)
        if value_in(shown, "attempt") is None:
            self._presence.turn_back()
            raise InDoubt(f"rank {rank} gave up as all began")
        return value_in(shown, "says")

    def fail(self, error: BaseException) -> None:
        """Show that this rank has not done what it began; it waits for nobody."""
        order = self._begun()
        why = f"rank {self.rank}: {error_text(error)}"
        with suppress(LayerShardError):  # the error at hand says more
            if isinstance(self._side, Lead):
                self._presence.say(order._replace(word="broken", why=why))
            self._show_end(order, None, why)
        self._presence.turn_back()

    def end(self, says: Any, objection: Objection) -> None:
        """Return once every rank has ended well, and the lead has no objection to what they say.

        Raises:
            NodeError, TransportError: on each rank that does not hear so: why.
        """
        order = self._begun()
        try:
            self._show_end(order, says, None)
            order = self._side.end(order, says, objection)
        finally:
            self._presence.turn_back()
        if order.word != "whole":
            raise TransportError(order.why)

    def _begun(self) -> Order:
        order, self._order = self._order, None
        assert order is not None, "note [All or none]: it ends once what has begun"
        return order

    def _show_end(self, order: Order, says: Any, fault: str | None) -> None:
        self._presence.show(ended={"round": order.round, "says": says, "fault": fault})


def error_text(error: BaseException) -> str:
    """An error as one line, with its class."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
