"""Member: any rank of an act but the first. It binds itself, and hears what the lead decides."""

from __future__ import annotations

from typing import Any

from vllm_layershard.errors import LayerShardError, ReloadError
from vllm_layershard.runtime.reload.order import InDoubt, Order, order_in
from vllm_layershard.runtime.reload.side import Objection, Side

_ENDS = ("whole", "broken")


class Member(Side):
    """See the note [All or none] in act.py."""

    def begin(self, attempt: str, objection: Objection) -> Order:
        """Bind this rank to the lead's proposal, and hear whether to begin."""
        presence, deadline, bound = self._presence, self._presence.deadline(), False
        begun = presence.shown["begun"]
        while True:
            try:
                shown = presence.board.read(presence.lead)
                order = order_in(shown)
                if order is not None and order.members.get(str(presence.board.rank)) == attempt:
                    if order.word == "refuse":
                        presence.shown["begun"] = begun  # it is shown as the rank turns back
                        return order
                    if order.word == "go":
                        return order
                    if order.word == "broken":  # it has begun, and failed at once
                        raise InDoubt(order.why)
                    if not bound:
                        deadline, bound = presence.deadline(2), True
                        presence.show(bound=order.round, begun=True)
            except LayerShardError as error:
                if bound and not isinstance(error, InDoubt):
                    raise _unheard(str(error)) from error
                raise
            if shown is None:
                if bound:
                    raise _unheard(f"rank {presence.lead} has ended")
                raise ReloadError(presence.gone([presence.lead]))
            if not presence.look_again(deadline):
                if bound:
                    raise _unheard(f"rank {presence.lead} does not go on")
                raise ReloadError(presence.late([presence.lead]))

    def end(self, order: Order, says: Any, objection: Objection) -> Order:
        """Hear from the lead how all ended; while it goes on, however slowly, it is waited for."""
        presence, deadline, seen = self._presence, self._presence.end_deadline(), None
        while True:
            shown = presence.board.read(presence.lead)
            said = order_in(shown)
            if said is not None and said.round == order.round and said.word in _ENDS:
                return said
            if shown is None:
                return order._replace(word="broken", why=presence.gone([presence.lead]))
            if shown != seen:
                seen, deadline = shown, presence.end_deadline()
            if not presence.look_again(deadline):
                return order._replace(word="broken", why=presence.stuck([presence.lead]))


def _unheard(why: str) -> InDoubt:
    return InDoubt(f"this rank was ready, and did not hear whether to begin: {why}")
