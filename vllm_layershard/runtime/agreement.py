"""Agreement: the ranks of a group compare plans before the first forward."""

from __future__ import annotations

from typing import Any

from vllm_layershard.errors import MismatchError
from vllm_layershard.plan import Plan, differences
from vllm_layershard.runtime.group import RankGroup

_MOST_LINES = 5


def agree(plan: Plan, group: RankGroup) -> None:
    """Return if every rank of the group has the same plan. Collective.

    Raises:
        MismatchError: on every rank, naming the ranks that differ from the first and how.
    """
    digests = group.gather(plan.digest())
    if len(set(digests)) == 1:
        return
    documents = group.gather(plan.document())
    faults = [
        f"rank {rank} against rank {group.ranks[0]}: {differing(documents[0], document, 'plan')}"
        for rank, document in zip(group.ranks, documents, strict=True)
        if document != documents[0]
    ]
    raise MismatchError(
        "the ranks of a layer sharding group have different plans; give every rank the same "
        f"configuration, model and version. {' | '.join(faults)}"
    )


def differing(one: Any, other: Any, path: str) -> str:
    """The first few places where two documents differ, in a line."""
    found = differences(one, other, path)
    more = f"; and {len(found) - _MOST_LINES} more" if len(found) > _MOST_LINES else ""
    return "; ".join(found[:_MOST_LINES]) + more
