"""UnderWay: the movements of one series that have started, and what each slot holds or receives."""

from __future__ import annotations

from vllm_layershard.errors import HostError
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.ranks.group import Group
from vllm_layershard.runtime.transport.base import Ticket, Transport


class UnderWay:
    """Of one series on one rank, from one forward to the next."""

    def __init__(self, plan: SeriesPlan, group: Group) -> None:
        self._plan = plan
        self._group = group
        self._slot = plan.schedule.slot
        self.starts = tuple(
            tuple((ahead, plan.arriving_bytes(ahead, group.group_rank)) for ahead in launched)
            for launched in plan.schedule.launches
        )
        """By position: what starts at its boundary, and how many bytes of it come to this rank."""
        self.arriving: list[Ticket | None] = [None] * len(plan.series)
        """By position: a movement that has started and was not waited for yet."""
        self._occupant: list[int | None] = [None] * plan.schedule.num_slots
        """The position that each slot holds or is receiving; None before its first movement."""
        self._unread: list[int] = []
        """Positions that nobody had waited for when their slots were needed again."""
        self._left: set[int] = set()
        """Positions that a former forward has moved and never read, and that nobody waits for."""

    @property
    def positions(self) -> tuple[int, ...]:
        """Those that have started to move and were not waited for yet."""
        return tuple(p for p, ticket in enumerate(self.arriving) if ticket is not None)

    def has_started(self, position: int) -> bool:
        """Whether the position's weight is where its linear reads it, or on its way there."""
        return not self._slot or self._occupant[self._slot[position]] == position

    def begin(self) -> tuple[int, ...]:
        """At the start of a forward: the positions that the last one has moved and never read."""
        self.forget_captured()
        unread = (*self._unread, *(p for p in self.positions if p not in self._left))
        self._unread, self._left = [], set(self.positions)
        return unread

    def forget_captured(self) -> None:
        """Outside a forward: nothing that a graph has started is left to wait for.

        A graph joins all that it starts. What is left of it was being captured when that failed:
        it has never moved.
        """
        for position in self.positions:
            ticket = self.arriving[position]
            if ticket is not None and ticket.captured:
                self.arriving[position] = None

    def start(self, position: int, transport: Transport) -> None:
        """Begin to move the position into its slot, behind what its slot still receives.

        Raises:
            TransportError: a rank of the group is gone, or was not given the weights of a reload.
        """
        slot = self._slot[position]
        before = self._occupant[slot]
        if before is not None and self.arriving[before] is not None:
            # A forward that skips a linear (vllm-ascend's dummy batches) never waits for it:
            # two movements into one slot must not overlap.
            self.wait(before)
            if before not in self._left:  # this forward's own
                self._unread.append(before)
        try:
            self.arriving[position] = transport.start(position, slot)
        except RuntimeError as error:
            raise self._group.lost_layer(self._plan, position, error) from error
        self._occupant[slot] = position
        self._left.discard(position)

    def wait(self, position: int) -> None:
        """Wait for a movement that has started.

        Raises:
            TransportError: it did not arrive.
            HostError: it was started within a captured graph and is waited for outside, or the
                other way round.
        """
        ticket = self.arriving[position]
        assert ticket is not None, f"{self._plan.layer_name(position)} is not in flight"
        if not ticket.may_wait():
            started, waited = ("within", "outside") if ticket.captured else ("outside", "within")
            raise HostError(
                f"{self._plan.layer_name(position)} was started {started} a captured graph and is "
                f"waited for {waited}, where it would never arrive; use cudagraph_mode "
                "FULL_DECODE_ONLY, or leave the linear out"
            )
        try:
            ticket.wait()
        except RuntimeError as error:
            raise self._group.lost_layer(self._plan, position, error) from error
        self.arriving[position] = None
