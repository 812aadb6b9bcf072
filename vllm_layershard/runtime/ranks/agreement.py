"""The ranks of a group compare plans before the first forward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from vllm_layershard import errors
from vllm_layershard.errors import LayerShardError, MismatchError, TransportError
from vllm_layershard.plan import Plan, differences
from vllm_layershard.runtime.ranks.group import Group

_MOST_LINES = 5

_T = TypeVar("_T")


def on_all_ranks(attempt: Callable[[], _T], group: Group) -> _T:
    """What `attempt` returns, once it has returned on every rank of the group. Collective.

    `attempt` is not collective: where it raises, the others would wait for this rank in the next
    collective. Here they learn of it.

    Raises:
        LayerShardError: what this rank's attempt raised; else, of the same class, what the first
            rank whose attempt raised said.
        TransportError: what that rank raised was none of these, or a rank died or hangs.
    """
    try:
        result = attempt()
    except Exception as error:
        with suppress(TransportError):  # then nobody is left to be told
            group.gather([type(error).__name__, str(error)])
        raise
    for rank, told in zip(group.ranks, group.gather(None), strict=True):
        if told is not None:
            raise _retold(rank, *told)
    return result


def _retold(rank: int, kind: str, said: str) -> LayerShardError:
    """The error of another rank."""
    named = getattr(errors, kind, None)
    if isinstance(named, type) and issubclass(named, LayerShardError):
        whose = f"rank {rank}: "
        return named(said if said.startswith(whose) else f"{whose}{said}")
    return TransportError(f"rank {rank} failed with {kind}: {said}; see that rank's log")


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
