"""ReplicaGroup: ranks with the same copies, of engines that never wait for each other."""

from __future__ import annotations

from typing import Any, ClassVar

from vllm_layershard.runtime.ranks.group import Group
from vllm_layershard.runtime.ranks.rendezvous import Rendezvous


class ReplicaGroup(Group):
    """`ranks` are numbered over all replicas. What they compare goes through the rendezvous.

    A rank and a size tell groups of one purpose apart: those of one size do not overlap.
    """

    lockstep: ClassVar[bool] = False

    def __init__(
        self,
        rendezvous: Rendezvous,
        ranks: tuple[int, ...],
        purpose: str = "layers",
        *,
        rejoins: bool = True,
    ) -> None:
        self.ranks = ranks
        self.rejoins = rejoins
        self.group_rank = ranks.index(rendezvous.rank)
        self._subject = f"{purpose}-{ranks[0]}x{len(ranks)}"
        self.name = f"{rendezvous.name}-{self._subject}"
        self._rendezvous = rendezvous
        self._gathered = 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, plain data, by group rank; waits for those that have not come so far.

        The values are numbered, and shown for as long as a rank lives: a rank that starts late, or
        again, finds those of the others under the same numbers.

        Raises:
            TransportError: a rank did not come, in bounded time, or said why it ended.
        """
        self._gathered += 1
        self.amend(value)
        return self._rendezvous.read(self._numbered, self.ranks)

    def amend(self, value: Any) -> None:
        """Show those that come later another value than the one that was gathered last."""
        self._rendezvous.publish(self._numbered, value)

    @property
    def _numbered(self) -> str:
        return f"{self._subject}-{self._gathered}"
