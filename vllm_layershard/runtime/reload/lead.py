"""Lead: the first rank of an act. It calls the others, decides, and says how all ended."""

from __future__ import annotations

from secrets import token_hex
from typing import Any

from vllm_layershard.errors import LayerShardError
from vllm_layershard.runtime.reload.order import InDoubt, Order, order_in, value_in
from vllm_layershard.runtime.reload.side import Objection, Side


class Lead(Side):
    """See the note [All or none] in act.py."""

    def begin(self, attempt: str, objection: Objection) -> Order:
        """Wait until all are ready, then until all are bound."""
        say = self._presence.say
        members, why = self._ready(objection)
        proposed = Order(token_hex(8), members, "propose")
        if why:
            return say(proposed._replace(word="refuse", why=why))
        say(proposed)
        try:
            why = self._unbound(proposed)
            if why:
                return say(proposed._replace(word="refuse", why=why))
            return say(proposed._replace(word="go"), begun=True)
        except LayerShardError as error:  # those who are bound are in doubt, too
            why = f"this rank could not tell the others whether to begin: {error}"
            raise InDoubt(why) from error

    def _ready(self, objection: Objection) -> tuple[dict[str, str], str]:
        """The attempts of those who are ready, and why not all may begin, if so.

        One that was decided about is none: its rank has yet to hear of it.
        """
        presence, deadline = self._presence, self._presence.deadline()
        decided = order_in(presence.shown)
        heard = set() if decided is None else set(decided.members.values())
        while True:
            shown = {rank: presence.board.read(rank) for rank in presence.others}
            members = {
                str(rank): document["attempt"]
                for rank, document in shown.items()
                if _is_new(value_in(document, "attempt"), heard)
                and value_in(document, "bound") is None
            }
            gone = [rank for rank, document in shown.items() if document is None]
            if gone:
                return members, presence.gone(gone)
            missing = [rank for rank in presence.others if str(rank) not in members]
            if not missing:
                return members, self._fault({presence.lead: presence.shown, **shown}, objection)
            if not presence.look_again(deadline):
                return members, presence.late(missing)

    def _fault(self, shown: dict[int, Any], objection: Objection) -> str:
        """Why not all of those who are ready may begin."""
        ranks = self._presence.board.ranks
        failed = {rank: value_in(shown[rank], "failed") for rank in ranks}
        faults = [f"rank {rank}: {said}" for rank, said in failed.items() if said]
        told = [value_in(shown[rank], "says") for rank in ranks]
        return " | ".join(faults) or objection(told) or ""

    def _unbound(self, proposed: Order) -> str:
        """Wait until all have bound themselves; why one did not, if so."""
        presence, deadline = self._presence, self._presence.deadline()
        while True:
            shown = {rank: presence.board.read(rank) for rank in presence.others}
            gone = [rank for rank, document in shown.items() if document is None]
            if gone:
                return presence.gone(gone)
            for rank, document in shown.items():
                if value_in(document, "attempt") != proposed.members[str(rank)]:
                    return f"rank {rank} has turned back"
            missing = [r for r in presence.others if value_in(shown[r], "bound") != proposed.round]
            if not missing:
                return ""
            if not presence.look_again(deadline):
                return presence.late(missing)

    def end(self, order: Order, says: Any, objection: Objection) -> Order:
        """Wait until all have ended; one that goes on, however slowly, is waited for."""
        why = self._broken(order, says, objection)
        return self._presence.say(order._replace(word="broken" if why else "whole", why=why))

    def _broken(self, order: Order, says: Any, objection: Objection) -> str:
        presence, deadline = self._presence, self._presence.end_deadline()
        found: dict[int, Any] = {presence.lead: says}
        seen: dict[int, Any] = {}
        while missing := [rank for rank in presence.others if rank not in found]:
            for rank in missing:
                shown = presence.board.read(rank)
                if shown is None:
                    return presence.gone([rank])
                if shown != seen.get(rank):
                    seen[rank], deadline = shown, presence.end_deadline()
                ended = value_in(shown, "ended")
                if value_in(ended, "round") == order.round:
                    if value_in(ended, "fault") is not None:
                        return str(value_in(ended, "fault"))
                    found[rank] = value_in(ended, "says")
            presence.beat()
            if not presence.look_again(deadline):
                return presence.stuck(missing)
        return objection([found[rank] for rank in presence.board.ranks]) or ""


def _is_new(attempt: Any, heard: set[str]) -> bool:
    """Whether a rank shows an attempt about which it has yet to hear."""
    return isinstance(attempt, str) and attempt not in heard
