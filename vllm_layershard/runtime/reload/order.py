"""Order: what the first rank has decided last, for the others to read."""

from __future__ import annotations

from typing import Any, NamedTuple

from vllm_layershard.errors import TransportError


class InDoubt(TransportError):
    """Others may have begun without this rank."""


class Order(NamedTuple):
    """One of a round. `word` is `propose`, `go` or `refuse`, then `whole` or `broken`.

    `members` are the attempts that it is about, by rank; `why` is said where something failed.
    """

    round: str
    members: dict[str, str]
    word: str
    why: str = ""


def order_in(document: Any) -> Order | None:
    """The order that a rank's document shows; None if it shows none."""
    order = value_in(document, "order")
    if not isinstance(order, dict) or not isinstance(order.get("members"), dict):
        return None
    return Order(
        str(order.get("round")), order["members"], str(order.get("word")), str(order.get("why"))
    )


def value_in(document: Any, key: str) -> Any:
    """What a document holds there; None if it is none, or holds nothing."""
    return document.get(key) if isinstance(document, dict) else None
