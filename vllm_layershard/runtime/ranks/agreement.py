"""Agreement: the ranks of a group compare plans before the first forward."""

from __future__ import annotations

from typing import Any

from vllm_layershard.errors import MismatchError
from vllm_layershard.plan import Plan, differences
from vllm_layershard.runtime.ranks.group import Group

_MOST_LINES = 5


def agree(plan: Plan, group: Group) -> None:
    """Return if every rank of the group has the same plan. Collective.

    Raises:
        MismatchError: on every rank, naming the ranks that differ from the first and how.
    """
    if len(set(group.gather(plan.digest()))) > 1:
        agree_on("plan", plan.document(), group)


def agree_on(subject: str, document: Any, group: Group) -> None:
    """Return if every rank of the group has the same document, plain data. Collective.

    Raises:
        MismatchError: on every rank, naming the ranks that differ from the first and how.
    """
    documents = group.gather(document)
    faults = [
        f"rank {rank} against rank {group.ranks[0]}: {differing(documents[0], other, subject)}"
        for rank, other in zip(group.ranks, documents, strict=True)
        if other != documents[0]
    ]
    if faults:
        raise MismatchError(
            f"the ranks of a layer sharding group have different {subject}s; give every rank the "
            f"same configuration, model and version. {' | '.join(faults)}"
        )


def differing(one: Any, other: Any, path: str) -> str:
    """The first few places where two documents differ, in a line."""
    found = differences(one, other, path)
    more = f"; and {len(found) - _MOST_LINES} more" if len(found) > _MOST_LINES else ""
    return "; ".join(found[:_MOST_LINES]) + more
