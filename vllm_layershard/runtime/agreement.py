"""Agreement: the ranks of a group compare plans before the first forward."""

from __future__ import annotations

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
    faults = []
    for index, document in enumerate(documents[1:], start=1):
        found = differences(documents[0], document)
        if found:
            shown = "; ".join(found[:_MOST_LINES])
            more = f"; and {len(found) - _MOST_LINES} more" if len(found) > _MOST_LINES else ""
            faults.append(f"rank {group.ranks[index]} against rank {group.ranks[0]}: {shown}{more}")
    raise MismatchError(
        "the ranks of a layer sharding group have different plans; give every rank the same "
        f"configuration, model and version. {' | '.join(faults)}"
    )
