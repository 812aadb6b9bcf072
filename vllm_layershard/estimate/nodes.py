"""Spread: how a group of ranks lies on nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple


class Spread(NamedTuple):
    """A group of `ranks` on `nodes` nodes, at most `on_a_node` of them on one."""

    ranks: int
    nodes: int
    on_a_node: int


ALONE: Final = Spread(ranks=1, nodes=1, on_a_node=1)
"""One rank: nothing moves."""


def widest(groups: Iterable[Sequence[int]], node_size: int) -> Spread:
    """That of the groups, given by global ranks, which lies on most nodes.

    Rank r lies on node r // node_size: vLLM numbers the ranks of a node one after the other.
    """
    return max((_spread(ranks, node_size) for ranks in groups), key=lambda spread: spread.nodes)


def _spread(ranks: Sequence[int], node_size: int) -> Spread:
    nodes = Counter(rank // node_size for rank in ranks)
    return Spread(len(ranks), len(nodes), max(nodes.values()))
