"""Spread: how a group of ranks lies on domains, the devices of one fast link each.

Where a fast link joins all devices of a node, and no others, a domain is a node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple


class Spread(NamedTuple):
    """A group of `ranks` on `domains` domains, at most `in_a_domain` of them in one."""

    ranks: int
    domains: int
    in_a_domain: int

    @property
    def least_in_a_domain(self) -> int:
        """At least so many of them are in each: what is left where all other domains are full."""
        return max(1, self.ranks - self.in_a_domain * (self.domains - 1))


ALONE: Final = Spread(ranks=1, domains=1, in_a_domain=1)
"""One rank: nothing moves."""


def widest(groups: Iterable[Sequence[int]], node_size: int) -> Spread:
    """That of the groups, given by global ranks, which lies on most domains.

    Rank r lies in domain r // node_size: vLLM numbers the ranks of a node one after the other.
    """
    return max((_spread(ranks, node_size) for ranks in groups), key=lambda spread: spread.domains)


def _spread(ranks: Sequence[int], node_size: int) -> Spread:
    domains = Counter(rank // node_size for rank in ranks)
    return Spread(len(ranks), len(domains), max(domains.values()))
