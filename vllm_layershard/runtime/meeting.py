"""Meeting: before anything else is done together, all ranks of the world say what they are about.

A rank that shards otherwise, or not at all, would leave the others in a collective for as long as
its process group waits. So the first exchange goes through the world's store, where each rank
leaves its word and waits for the others' for a bounded time.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vllm_layershard.errors import MismatchError
from vllm_layershard.plan import differences

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

WAIT_S = 180
"""All ranks build the model right after they have formed the world: minutes mean never."""

_LEAVE_S = 10
"""How long the rank that holds the store stays, so that all others have read it."""

_MOST_LINES = 5
_meetings = itertools.count()


def meet(word: Mapping[str, Any], store: Store, rank: int, size: int, wait_s: float) -> None:
    """Return if every rank of the world has the same `word` (plain data). Collective.

    The ranks meet as often as each other; the n-th call here meets the n-th call there.

    Raises:
        MismatchError: on every rank that came: who differs from rank 0 and how, or who is missing.
    """
    meeting = f"layershard/{next(_meetings)}"
    mine = json.dumps(dict(word), sort_keys=True)
    store.set(f"{meeting}/{rank}", mine)
    everybody = [f"{meeting}/{one}" for one in range(size)]
    try:
        store.wait(everybody, timedelta(seconds=wait_s))
    except RuntimeError as error:
        missing = [one for one, key in enumerate(everybody) if not _has(store, key)]
        raise MismatchError(
            f"rank {rank}: ranks {missing} of {size} have not come to shard their model within "
            f"{wait_s:g} s; start every node with the same --additional-config and the same "
            f"plugins, and see those ranks' logs ({str(error).splitlines()[0]})"
        ) from error
    words = [json.loads(store.get(key)) for key in everybody]
    _leave(store, meeting, rank, size)
    faults = [
        f"rank {one} against rank 0: {_shown(differences(words[0], other, 'its'))}"
        for one, other in enumerate(words)
        if other != words[0]
    ]
    if faults:
        raise MismatchError(
            "the ranks want to shard in different ways; give every rank the same configuration, "
            f"model and versions. {' | '.join(faults[:_MOST_LINES])}"
        )


def _leave(store: Store, meeting: str, rank: int, size: int) -> None:
    """Do not end the process that holds the store while others still read."""
    store.set(f"{meeting}/left/{rank}", "")
    if rank == 0:
        with suppress(RuntimeError):  # whoever has not read by now has died
            left = [f"{meeting}/left/{one}" for one in range(size)]
            store.wait(left, timedelta(seconds=_LEAVE_S))


def _has(store: Store, key: str) -> bool:
    with suppress(RuntimeError):
        return bool(store.check([key]))
    return False


def _shown(lines: list[str]) -> str:
    more = f"; and {len(lines) - _MOST_LINES} more" if len(lines) > _MOST_LINES else ""
    return "; ".join(lines[:_MOST_LINES]) + more
